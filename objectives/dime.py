"""DIME: maximum-entropy reinforcement learning by backpropagation through the denoising chain."""

from typing import ClassVar, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn

from diffpolicy.actors import PathActor, PathSample, observation_keys
from diffpolicy.actors.keys import required
from diffpolicy.networks import CategoricalSupport, HLGauss
from objectives import functional as fn
from objectives.draws import Draws
from objectives.paths import sample_path
from objectives.q_critic import CriticReduction, QNetworks, QValues
from objectives.replay_loss import ActionCriticLoss
from objectives.temperature import Temperature
from objectives.transitions import next_entry, return_discount, reward_of_one_step
from objectives.value_range import ValueRange


class DIMELoss(ActionCriticLoss):
    """Soft actor-critic with the entropy bound of a denoising chain (arXiv 2502.02316).

    One chain of the policy costs ``run = sum_n LR_n - log |d tanh(x_N)|`` and
    ``term = log p(x_0)``, whose sum takes the place of ``log pi(a | s)``: its mean bounds the
    negative entropy of the action from above. On transitions ``[*B]``::

        L_Q  = sum_j d(Q_j(s, a), r + gamma (1 - terminated) (Q(s', a') - T (run' + term')))
        L_pi = T (run + term) - Q(s, a),   differentiated through the whole chain
        L_T  = T stopgrad(-run - H_target)

    Returns ``loss_qvalue``, ``loss_actor`` and, with a learned temperature, ``loss_alpha``, to be
    summed. No term has a gradient in the parameters of another. To update the policy less often,
    call :meth:`qvalue_loss` for every update and :meth:`actor_loss` and :meth:`alpha_loss` for
    some.

    The published critic is a categorical :class:`~diffpolicy.networks.QEnsemble` with batch
    renormalisation and no target network: current and next state-action pairs go through it in
    one forward, in the mode that the critic is in, so that ``loss.train()`` makes it use and track
    batch statistics. The actor loss always runs it in evaluation mode. The classic recipe is a
    scalar critic, ``delay_qvalue=True``, ``critic_reduction="min"`` and TorchRL's ``SoftUpdate``.

    Args:
        actor_network: a :class:`~diffpolicy.actors.PathActor`, or a ``TensorDictSequential`` of
            encoders and one.
        qvalue_network: reads the observation and the action, writes ``state_action_value``
            ``[*B, E, 1]`` for ``E`` critics (``[*B, 1]`` for one) and, if a submodule of it is a
            :class:`~diffpolicy.networks.CategoricalSupport` or
            :class:`~diffpolicy.networks.HLGauss`, ``state_action_value_logits`` ``[*B, E, K]``. Or
            a list of such modules for one critic each, or a tensordict ``EnsembleModule``.
        temperature: a number, or a Temperature. Published:
            ``LearnedTemperature(1.0, target_entropy=-4 * action_dim)``; the target refers to
            ``entropy``.
        num_qvalue_nets: make so many critics of one network for one critic; None takes it as it is.
        value_range: ``(minimum, maximum)`` or ``"auto"`` moves the atoms; None leaves them.
            ``"auto"`` derives the range from the rewards of the first batch that the critic loss
            sees; better call :meth:`derive_value_range` with all data of the warm-up before.
        delay_qvalue: whether next values come from a target network.
        critic_reduction: ``"mean"`` or, not for categorical critics, ``"min"``, over the critics.
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        critic_entropy_coeff: weight of the critics' own negative entropy, categorical critics only.
        num_next_actions: number of next actions that the target is averaged over.
        checkpoint_chain: save memory in the actor loss by computing activations of the chain again.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics, is written into the input as ``td_error`` ``[*B]`` for
    prioritised replay, unless the input is locked.

    Every random number of a call can be given as ``draws``, see :meth:`draw`.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``entropy`` (``-run``, what
    the temperature's target refers to), ``entropy_bound`` (``-(run + term)``, of the action in
    [-1, 1] units), ``alpha``, for critics with a head ``value_clip_fraction`` (probability that
    targets put outside of the value range) and for categorical ones ``critic_entropy``.

    Raises:
        TypeError: if the actor lacks members of PathActor, or for a bad temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({"critic_entropy_coeff"})

    critic_entropy_coeff: Tensor

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        temperature: float | Temperature,
        num_qvalue_nets: int | None = None,
        value_range: tuple[float, float] | Literal["auto"] | None = None,
        delay_qvalue: bool = False,
        critic_reduction: CriticReduction = "mean",
        loss_function: fn.ValueLoss = "l2",
        critic_entropy_coeff: float = 0.005,
        num_next_actions: int = 1,
        checkpoint_chain: bool = False,
        separate_losses: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(actor_network, protocol=PathActor, reduction=reduction)
        self.critic = self._add_qvalue_network(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            separate=separate_losses,
            reduction=critic_reduction,
            loss_function=loss_function,
            heads=(CategoricalSupport, HLGauss),
        )
        self._add_temperature(temperature)
        if num_next_actions < 1:
            raise ValueError(f"num_next_actions must be at least 1, got {num_next_actions}.")
        self.value_range = ValueRange(self.critic.atoms, value_range)
        self.num_next_actions = num_next_actions
        self.checkpoint_chain = checkpoint_chain
        self.register_coeff_buffer("critic_entropy_coeff", float(critic_entropy_coeff))
        self.make_value_estimator()

    @property
    def value_support(self) -> CategoricalSupport | None:
        """The atoms of a categorical critic, else None."""
        return self.critic.atoms

    def _default_in_keys(self) -> list[NestedKey]:
        return self._transition_keys(observation_keys(self.actor_network))

    def _default_out_keys(self) -> list[NestedKey]:
        alpha = ["loss_alpha"] if self.temperature.learned else []
        diagnostics = [*self.critic.diagnostic_keys, "entropy", "entropy_bound", "alpha"]
        return ["loss_qvalue", "loss_actor", *alpha, *diagnostics]

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on transitions ``[*B]``, for ``draws``.

        ``noise`` ``[*B, N+1, A]`` makes the chains of the actor loss and ``next_noise``
        ``[*B, M, N+1, A]`` those of the next actions. Both are optional in ``draws``.

        Raises:
            TypeError: if the actor does not tell its ``denoising_steps``.
        """
        steps = getattr(self.actor_network, "denoising_steps", None)
        if steps is None:
            raise TypeError(
                f"draw() needs an actor with denoising_steps, which "
                f"{type(self.actor_network).__name__} has not."
            )
        tensordict = self._enter(tensordict)
        action = required(tensordict, self.tensor_keys.action)
        batch, size = tensordict.batch_size, (steps + 1, action.shape[-1])
        shapes = {
            "noise": (*batch, *size),
            "next_noise": (*batch, self.num_next_actions, *size),
        }
        noises = {name: torch.randn_like(action.new_empty(size)) for name, size in shapes.items()}
        return TensorDict(noises, batch)

    def derive_value_range(self, tensordict: TensorDictBase, *, margin: float = 2.0) -> float:
        """Let the atoms span ``+-margin max|r| / (1 - gamma)`` and return this bound.

        Later rewards may be larger than those seen so far: ``value_clip_fraction`` tells, and a
        warning. Without any reward that differs from zero the atoms start as for rewards up to 1,
        with a warning, and widen once larger ones appear, see :class:`ValueRange`.

        Args:
            tensordict: transitions ``[*B]``, the more the better; only rewards are read.
            margin: room for entropy terms and larger rewards.

        Raises:
            ValueError: without a categorical critic.
        """
        gamma = float(self.value_estimator.gamma)
        reward = next_entry(tensordict, self.tensor_keys.reward)
        return self.value_range.derive(reward, gamma, margin)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        given, tensordict, keys = tensordict, self._enter(tensordict), self.tensor_keys
        self.value_range.prepare(*reward_of_one_step(self.value_estimator, tensordict))
        following = tensordict["next"].expand(self.num_next_actions, *tensordict.batch_size)
        with torch.no_grad():
            noise = self._draws(draws, tensordict).get("next_noise", 1)
            path = sample_path(self.actor_network, following, noise)
        inputs = self.critic.action_inputs
        current, coming = self.critic.current_and_next(
            inputs(tensordict, keys.action, required(tensordict, keys.action)),
            inputs(following, keys.action, path.action),
            keys,
            self.qvalue_network_params,
            self.target_qvalue_network_params if self.delay_qvalue else None,
        )
        compare = self._scalar_distance if self.critic.atoms is None else self._categorical_distance
        distance, diagnostics = compare(tensordict, current, coming, path)
        loss, diagnostics = self._fit(distance, diagnostics, tensordict)
        self._leave(tensordict, given)
        if self.critic.atoms is not None:
            self.value_range.watch(diagnostics["value_clip_fraction"])
        return loss, diagnostics

    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``T (run + term) - Q``, and ``entropy`` and ``entropy_bound`` ``[*B, 1]``."""
        tensordict = self._enter(tensordict)
        noise = self._draws(draws, tensordict).get("noise")
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            path = sample_path(
                self.actor_network, tensordict, noise, checkpoint=self.checkpoint_chain
            )
        value = self.critic.over_critics(self.each_value(tensordict, path.action))
        bound = fn.entropy_bound(path.running_cost, path.terminal_cost)
        loss = -self.temperature() * bound - value
        entropies = {"entropy": -path.running_cost.detach(), "entropy_bound": bound.detach()}
        return self._reduce(loss, tensordict), entropies

    def _draws(self, draws: TensorDictBase | None, tensordict: TensorDictBase) -> Draws:
        return Draws(draws, tensordict.batch_size, ("noise", "next_noise"))

    def _soft_target(
        self, tensordict: TensorDictBase, next_value: Tensor, path: PathSample
    ) -> Tensor:
        keys = self.tensor_keys
        reward = next_entry(tensordict, keys.reward)
        cost = path.running_cost + path.terminal_cost
        return fn.soft_target(
            next_value,
            reward.expand_as(cost),
            next_entry(tensordict, keys.terminated).expand_as(cost),
            cost,
            discount=return_discount(self.value_estimator, tensordict, reward),
            temperature=self.temperature(),
        )

    def _categorical_distance(
        self, tensordict: TensorDictBase, current: QValues, coming: QValues, path: PathSample
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropies with the projected mixture of the critics' distributions."""
        assert self.critic.atoms is not None  # chosen by qvalue_loss
        assert current.logits is not None
        assert coming.logits is not None
        atoms = self.critic.atoms.atoms
        with torch.no_grad():
            places = self._soft_target(tensordict, atoms, path)
            probabilities = coming.logits.softmax(-1).mean(-2)
            clipped = fn.clipped_mass(places, probabilities, atoms).mean(0)
            target = fn.project_categorical(places, probabilities, atoms).mean(0)
        distance, entropy = fn.categorical_loss(current.logits, target, self.critic_entropy_coeff)
        mean = (target * atoms).sum(-1, keepdim=True)
        diagnostics = self.critic.diagnostics(current, mean)
        return distance, {**diagnostics, "value_clip_fraction": clipped, "critic_entropy": entropy}

    def _scalar_distance(
        self, tensordict: TensorDictBase, current: QValues, coming: QValues, path: PathSample
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            next_value = self.critic.over_critics(coming.value)
            target = self._soft_target(tensordict, next_value, path).mean(0)
        return self.critic.distance(current, target), self.critic.diagnostics(current, target)
