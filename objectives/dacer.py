"""DACER: backpropagation of the value through a diffusion policy, with noise for its entropy."""

from typing import cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn

from diffpolicy.actors import RegressionActor, observation_keys
from diffpolicy.actors.keys import required
from diffpolicy.errors import ArgumentError
from diffpolicy.networks import GaussianHead
from diffpolicy.networks.ranks import gather_over_ranks
from objectives import functional as fn
from objectives.draws import Draws
from objectives.entropy_regulator import EntropyRegulator
from objectives.q_critic import CriticReduction, QNetworks, QValues
from objectives.replay_loss import ActionCriticLoss
from objectives.value_spread import ValueSpread

#: Target entropy of an action dimension in [-1, 1] units, as published.
_TARGET_ENTROPY = -0.9
# A standard normal sample of the next value is at most this far from its mean, as published.
_SAMPLE_LIMIT = 3.0


class DACERLoss(ActionCriticLoss):
    """Diffusion actor-critic with entropy regulator (arXiv 2405.15177).

    The value is maximised through the whole chain of a diffusion policy, without an entropy. What
    keeps the policy from becoming a point is noise of ``lambda alpha`` on the actions that are
    executed, where alpha follows the entropy of these actions. On transitions ``[*B]``::

        L_Q     = sum_j refined(q_j(s, a), sigma_j(s, a); y, z, b)    (DSAC-T, arXiv 2310.05858)
        y       = r + gamma (1 - terminated) q_k(s', a'),   k = argmin_j q_j(s', a')
        z       = r + gamma (1 - terminated) (q_k(s', a') + sigma_k(s', a') xi)
        L_pi    = -min_j q_j(s, a),   differentiated through the whole chain
        L_alpha = log(alpha) stopgrad(H - H_target)

    Critics are normal distributions of returns, and ``refined`` is
    :func:`~objectives.functional.refined_gaussian_loss` with a running mean b of their standard
    deviations; scalar critics are fitted to y. H is measured by :meth:`update_entropy`, to be
    called every so many updates and followed by a step of alpha's optimiser; until the first time
    ``L_alpha`` is zero.

    Returns ``loss_qvalue``, ``loss_actor`` and ``loss_alpha``, to be summed. No term has a gradient
    in the parameters of another. To update the policy less often, call :meth:`qvalue_loss` for
    every update and :meth:`actor_loss` and :meth:`alpha_loss` for some.

    Acting in training goes through ``NoisyActor(loss.actor_network, loss.temperature,
    loss.noise_scale)``; ``loss.actor_network`` is the policy without that noise.

    Args:
        actor_network: a :class:`~diffpolicy.actors.RegressionActor` whose ``sample_action`` is
            differentiable, or a ``TensorDictSequential`` of encoders and one.
        qvalue_network: reads the observation and the action, writes ``state_action_value``
            ``[*B, E, 1]`` for ``E`` critics (``[*B, 1]`` for one) and, if a submodule of it is a
            :class:`~diffpolicy.networks.GaussianHead`, ``state_action_value_logits``
            ``[*B, E, 2]``, what the head reads. Or a list of such modules for one critic each, or a
            tensordict ``EnsembleModule``.
        regulator: alpha and its target; None is published: 3 at the start and a target of -0.9 for
            each action dimension.
        noise_scale: lambda; published: 0.15 for Humanoid and HalfCheetah, 0.1 for other tasks.
        noise_in_updates: whether a and a' above carry the noise, too, as published. Otherwise they
            are actions of the policy alone.
        entropy_actions: number of actions in each state by which the entropy is measured.
        entropy_components: number of Gaussians that are fitted to them.
        spread_rate: share of a batch in the running mean b, which moves in training mode.
        num_qvalue_nets: make so many critics of one network for one critic; None takes it as it is.
        delay_qvalue: whether next values come from a target network (TorchRL's ``SoftUpdate``).
        critic_reduction: ``"min"`` or ``"mean"`` over the critics, wherever actions are valued.
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics, is written into the input as ``td_error`` ``[*B]`` for
    prioritised replay, unless the input is locked.

    Every random number of a call can be given as ``draws``, see :meth:`draw`.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``value_std`` (of Gaussian
    critics), ``entropy`` (as measured last, of actions in [-1, 1] units) and ``alpha``.

    Raises:
        TypeError: if the actor lacks members.
        ArgumentError: for arguments outside their range.
        ValueError: for arguments that do not go together.
    """

    temperature: EntropyRegulator

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        regulator: EntropyRegulator | None = None,
        noise_scale: float = 0.1,
        noise_in_updates: bool = False,
        entropy_actions: int = 200,
        entropy_components: int = 3,
        spread_rate: float = 0.005,
        num_qvalue_nets: int | None = None,
        delay_qvalue: bool = True,
        critic_reduction: CriticReduction = "min",
        loss_function: fn.ValueLoss = "l2",
        separate_losses: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(actor_network, protocol=RegressionActor, reduction=reduction)
        self.critic = self._add_qvalue_network(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            separate=separate_losses,
            reduction=critic_reduction,
            loss_function=loss_function,
            heads=(GaussianHead,),
        )
        if noise_scale < 0:
            raise ArgumentError("noise_scale", noise_scale, "must be at least 0.")
        if not 1 <= entropy_components <= entropy_actions:
            raise ArgumentError(
                "entropy_components",
                entropy_components,
                f"must be at least 1 and at most the number of actions, {entropy_actions}.",
            )
        size = self.actor_network.squash.action_dim
        self._add_temperature(regulator or EntropyRegulator(_TARGET_ENTROPY * size))
        self.spread = ValueSpread(spread_rate)
        self.noise_scale = noise_scale
        self.noise_in_updates = noise_in_updates
        self.entropy_actions = entropy_actions
        self.entropy_components = entropy_components
        self.make_value_estimator()

    def _default_in_keys(self) -> list[NestedKey]:
        return self._transition_keys(observation_keys(self.actor_network))

    def _default_out_keys(self) -> list[NestedKey]:
        described = [*self.critic.diagnostic_keys, "entropy", "alpha"]
        return ["loss_qvalue", "loss_actor", "loss_alpha", *described]

    # -- random numbers -----------------------------------------------------------------------

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on transitions ``[*B]``, for ``draws``.

        ``noise`` and ``next_noise`` ``[*B, N+1, A]`` make the chains of the actor loss and of the
        next actions, with Gaussian critics ``value_noise`` ``[*B, 1]`` the sample of the next
        value, and with ``noise_in_updates`` ``action_noise`` and ``next_action_noise`` ``[*B, A]``
        are added to the actions. All are optional in ``draws``.
        """
        tensordict = self._enter(tensordict)
        action = required(tensordict, self.tensor_keys.action)
        batch, size = tensordict.batch_size, action.shape[-1]
        chain = (self.actor_network.denoising_steps + 1, size)
        shapes: dict[str, tuple[int, ...]] = {"noise": chain, "next_noise": chain}
        if self.critic.gaussian is not None:
            shapes["value_noise"] = (1,)
        if self.noise_in_updates:
            shapes |= {"action_noise": (size,), "next_action_noise": (size,)}
        drawn = {k: torch.randn_like(action.new_empty(*batch, *s)) for k, s in shapes.items()}
        return TensorDict(drawn, batch)

    def _draws(self, draws: TensorDictBase | None, tensordict: TensorDictBase) -> Draws:
        names = ("noise", "next_noise", "value_noise", "action_noise", "next_action_noise")
        return Draws(draws, tensordict.batch_size, names)

    # -- terms --------------------------------------------------------------------------------

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        transitions, keys, critic = self._enter(tensordict), self.tensor_keys, self.critic
        following, given = transitions["next"], self._draws(draws, transitions)
        with torch.no_grad():
            action = self.actor_network.sample_action(following, noise=given.get("next_noise"))
            action = self._in_updates(action, given.get("next_action_noise"))
        current, coming = critic.current_and_next(
            critic.action_inputs(transitions, keys.action, required(transitions, keys.action)),
            critic.action_inputs(following, keys.action, action).unsqueeze(0),
            keys,
            self.qvalue_network_params,
            self.target_qvalue_network_params if self.delay_qvalue else None,
        )
        with torch.no_grad():
            target = self._value_target(transitions, critic.over_critics(coming.value).squeeze(0))
        if critic.gaussian is None:
            distance = critic.distance(current, target)
        else:
            sample = self._sampled_target(transitions, coming, given.get("value_noise"))
            distance = self._refined_distance(transitions, current, target, sample)
        loss = self._fit(distance, critic.diagnostics(current, target), transitions)
        self._leave(transitions, tensordict)
        return loss

    @torch.no_grad()
    def _sampled_target(
        self, transitions: TensorDictBase, coming: QValues, noise: Tensor | None
    ) -> Tensor:
        """The target z ``[*B, 1]``, from a sample of the next value's distribution."""
        mean, std = (part.squeeze(0) for part in self.critic.distribution(coming))
        noise = torch.randn_like(mean) if noise is None else noise
        sample = mean + std * noise.clamp(-_SAMPLE_LIMIT, _SAMPLE_LIMIT)
        return self._value_target(transitions, sample)

    def _refined_distance(
        self, transitions: TensorDictBase, current: QValues, target: Tensor, sample: Tensor
    ) -> Tensor:
        """Loss ``[*B, 1]`` of all Gaussian critics."""
        std = self.critic.std(current)
        spread = self.spread(std.detach(), self._valid(transitions, target))
        wanted, drawn = (value.unsqueeze(-2).expand_as(std) for value in (target, sample))
        return fn.refined_gaussian_loss(current.value, std, wanted, drawn, spread).sum(-2)

    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``-min_j q_j(s, a)``, and the ``entropy`` that was measured last ``[*B, 1]``."""
        transitions = self._enter(tensordict)
        given = self._draws(draws, transitions)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            action = self.actor_network.sample_action(transitions, noise=given.get("noise"))
        action = self._in_updates(action, given.get("action_noise"))
        value = self.critic.over_critics(self.each_value(transitions, action))
        entropy = self.temperature.entropy.expand_as(value)
        return self._reduce(-value, transitions), {"entropy": entropy}

    # -- the entropy regulator ----------------------------------------------------------------

    @torch.no_grad()
    def update_entropy(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> Tensor:
        """Measure the entropy of actions that are executed, for ``loss_alpha`` from now on.

        A mixture of Gaussians is fitted to ``entropy_actions`` actions with noise in each state,
        see :func:`~objectives.functional.mixture_entropy`. Call it every so many updates, on all
        ranks alike, before a step of alpha's optimiser.

        Args:
            tensordict: transitions ``[*B]``; observations, masks and priority weights are read.
            draws: with K actions ``chain_noise`` ``[*B, K, N+1, A]`` and ``action_noise``
                ``[*B, K, A]``, both optional.

        Returns:
            The mean entropy over states and ranks, of actions in [-1, 1] units, a scalar.
        """
        transitions = self._enter(tensordict)
        given = Draws(draws, transitions.batch_size, ("chain_noise", "action_noise"))
        rows = transitions.select(*observation_keys(self.actor_network))
        several = rows.expand(self.entropy_actions, *rows.batch_size)
        action = self.actor_network.sample_action(several, noise=given.get("chain_noise", 1))
        action = self._with_noise(action, given.get("action_noise", 1))
        samples = self.actor_network.squash.to_unit(action).movedim(0, -2)
        mixture = fn.fit_gaussian_mixture(samples, self.entropy_components)
        each = fn.mixture_entropy(mixture).to(action.dtype)
        entropy = gather_over_ranks(self._reduce(each, transitions, "mean")).mean(0)
        self.temperature.note(entropy)
        return entropy

    def _in_updates(self, action: Tensor, noise: Tensor | None) -> Tensor:
        return self._with_noise(action, noise) if self.noise_in_updates else action

    def _with_noise(self, action: Tensor, noise: Tensor | None) -> Tensor:
        """Actions as they are executed in training."""
        noise = torch.randn_like(action) if noise is None else noise
        change = self.noise_scale * self.temperature() * noise
        return cast("Tensor", self.actor_network.squash.moved(action, change))
