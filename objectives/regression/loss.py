"""The regression family: a network is fitted to a target at noised actions, with weights."""

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn

from diffpolicy.actors import PathActor, RegressionActor, best_action, observation_keys
from diffpolicy.actors.chains import draw_steps
from diffpolicy.actors.keys import required
from diffpolicy.networks import HLGauss
from objectives import functional as fn
from objectives.draws import Draws
from objectives.q_critic import CriticReduction, QNetworks
from objectives.regression.parts import (
    LogProb,
    Noised,
    Part,
    Proposal,
    Target,
    Weight,
    Weighted,
    check_temperature,
    noised_actions,
    valid_actions,
)
from objectives.replay_loss import ActionCriticLoss
from objectives.temperature import Temperature


class DenoisingRegressionLoss(ActionCriticLoss):
    """Q learning, and a policy whose network is fitted to weighted targets at noised actions.

    Methods that do not differentiate through the chain are this loss with three parts. On
    transitions ``[*B]``, with actions ``a_m`` and weights ``w_m`` of ``proposal`` and ``weight``, a
    random step n, and latents ``x_n = signal_n x_N + std_n eps`` of the actions ``a_m``::

        L_Q  = sum_j d(Q_j(s, a), y),   y = r + gamma (1 - terminated) Q(s', a')
        L_pi = mean_m w_m | scale (net(x_n, n, s) - target) |^2 / A

    ``a'`` is an action of the policy, the best of ``best_of`` by the critics. Targets and scales
    are those of ``target`` and of the actor's process, whose network may say a score, a noise or a
    velocity.

    Returns ``loss_qvalue``, ``loss_actor`` and, with a learned temperature, ``loss_alpha``, to be
    summed. No term has a gradient in the parameters of another. To update the policy less often,
    call :meth:`qvalue_loss` for every update and :meth:`actor_loss` and :meth:`alpha_loss` for
    some. Step sizes and friction of a :class:`~diffpolicy.sde.DenoisingProcess` get no gradient.

    Args:
        actor_network: a :class:`~diffpolicy.actors.RegressionActor`, or a ``TensorDictSequential``
            of encoders and one.
        qvalue_network: reads the observation and the action, writes ``state_action_value``
            ``[*B, E, 1]`` for ``E`` critics (``[*B, 1]`` for one) and, if a submodule of it is an
            :class:`~diffpolicy.networks.HLGauss`, ``state_action_value_logits`` ``[*B, E, K]``. Or
            a list of such modules for one critic each, or a tensordict ``EnsembleModule``.
        proposal: where actions come from.
        weight: how much they count.
        target: what the network is fitted to.
        log_prob: estimates ``log pi(a' | s')``, which T times is taken from the next value; None
            leaves the entropy out of the values.
        temperature: a number, or a Temperature, which the parts may read. A learned one follows the
            entropy of the weights where they have one; otherwise that of the policy, for which the
            actor must be a :class:`~diffpolicy.actors.PathActor` whose process has densities.
        num_qvalue_nets: make so many critics of one network for one critic; None takes it as it is.
        sampled_steps: steps of each noised action in an update, of the N different ones.
        best_of: number of next actions, of which the critics choose the best one.
        measure_entropy: whether to report the entropy of the policy; always, if the temperature is
            learned.
        delay_qvalue: whether next values come from a target network (TorchRL's ``SoftUpdate``).
        delay_actor: whether next actions come from a target actor.
        critic_reduction: ``"min"`` or ``"mean"`` over the critics, wherever actions are valued.
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics, is written into the input as ``td_error`` ``[*B]`` for
    prioritised replay, unless the input is locked.

    Every random number of a call can be given as ``draws``, see :meth:`draw`.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``target_norm`` (of what
    the network is fitted to, per dimension: the root of its mean square), ``weight`` and
    ``weight_entropy`` (of the weights, where they vary), ``alpha``, with ``measure_entropy`` also
    ``entropy`` (of chains of the policy, the prior's term left out) and ``entropy_bound`` (of the
    action in [-1, 1] units) and, with an HL-Gauss critic, ``value_clip_fraction`` (share of targets
    outside its support).

    Raises:
        TypeError: if the actor lacks members, or for a bad temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        proposal: Proposal,
        weight: Weight,
        target: Target,
        log_prob: LogProb | None = None,
        temperature: float | Temperature = 0.0,
        num_qvalue_nets: int | None = None,
        sampled_steps: int = 1,
        best_of: int = 1,
        measure_entropy: bool = False,
        delay_qvalue: bool = True,
        delay_actor: bool = False,
        critic_reduction: CriticReduction = "min",
        loss_function: fn.ValueLoss = "l2",
        separate_losses: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(
            actor_network, protocol=RegressionActor, reduction=reduction, delay_actor=delay_actor
        )
        self.critic = self._add_qvalue_network(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            separate=separate_losses,
            reduction=critic_reduction,
            loss_function=loss_function,
        )
        self._add_temperature(temperature)
        self.proposal, self.weight, self.target = proposal, weight, target
        self.log_prob = log_prob
        check_temperature(self.temperature, self._parts())
        self.denoising_steps = self.actor_network.denoising_steps
        if not 1 <= sampled_steps <= self.denoising_steps:
            raise ValueError(
                f"sampled_steps must be between 1 and {self.denoising_steps}, the steps of the "
                f"chain, got {sampled_steps}."
            )
        if best_of < 1:
            raise ValueError(f"best_of must be at least 1, got {best_of}.")
        self.sampled_steps = sampled_steps
        self.best_of = best_of
        followed = self.temperature.learned and not weight.has_entropy
        self.measure_entropy = measure_entropy or followed
        self.followed_entropy = "weight_entropy" if weight.has_entropy else "entropy"
        if self.measure_entropy and not isinstance(self.actor_network, PathActor):
            raise TypeError(
                "the entropy, which a learned temperature follows, needs an actor with the members "
                f"of diffpolicy.actors.PathActor, got {type(self.actor_network).__name__}."
            )
        self.make_value_estimator()

    @property
    def value_support(self) -> HLGauss | None:
        """The bins of an HL-Gauss critic, None for a scalar one."""
        return self.critic.bins

    def _default_in_keys(self) -> list[NestedKey]:
        return self._transition_keys(observation_keys(self.actor_network))

    def _default_out_keys(self) -> list[NestedKey]:
        alpha = ["loss_alpha"] if self.temperature.learned else []
        weight = ["weight"] if self.weight.varies else []
        weight += ["weight_entropy"] if self.weight.has_entropy else []
        entropy = ["entropy", "entropy_bound"] if self.measure_entropy else []
        described = [*self.critic.diagnostic_keys, *entropy, "target_norm", *weight, "alpha"]
        return ["loss_qvalue", "loss_actor", *alpha, *described]

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on transitions ``[*B]``, for ``draws``.

        With kappa ``sampled_steps``, M weighted actions and N steps: ``step`` ``[*B, kappa, 1]``,
        the steps that are trained on, ``noise`` ``[*B, kappa, M, A]`` of the actions,
        ``next_noise`` ``[*B, best_of, N+1, A]`` of the next actions, with ``measure_entropy``
        ``entropy_noise`` ``[*B, N+1, A]``, and those of the parts. All are optional in ``draws``.
        """
        tensordict = self._enter(tensordict)
        action = required(tensordict, self.tensor_keys.action)
        batch, size = tensordict.batch_size, action.shape[-1]
        chain = (self.denoising_steps + 1, size)
        step = draw_steps(self.denoising_steps, batch, self.sampled_steps, action.device)
        named = {"step": step.movedim(0, -1).unsqueeze(-1)}
        named["next_noise"] = torch.randn_like(action.new_empty(*batch, self.best_of, *chain))
        if self.measure_entropy:
            named["entropy_noise"] = torch.randn_like(action.new_empty(*batch, *chain))
        for part in self._parts():
            named |= part.draw(self, action)
        weighted = self.weight.kept(self.proposal.number)
        shape = (*batch, self.sampled_steps, weighted, size)
        return TensorDict({**named, "noise": torch.randn_like(action.new_empty(shape))}, batch)

    def _parts(self) -> list[Part]:
        parts: list[Part | None] = [self.proposal, self.weight, self.target, self.log_prob]
        return [part for part in parts if part is not None]

    def _draws(self, draws: TensorDictBase | None, tensordict: TensorDictBase) -> Draws:
        read = [name for part in self._parts() for name in part.reads]
        names = ["step", "noise", "next_noise", "entropy_noise", *read]
        return Draws(draws, tensordict.batch_size, names)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        transitions, keys, critic = self._enter(tensordict), self.tensor_keys, self.critic
        following, given = transitions["next"], self._draws(draws, transitions)
        action = self._next_action(following, given.get("next_noise", 1))
        current, coming = critic.current_and_next(
            critic.action_inputs(transitions, keys.action, required(transitions, keys.action)),
            critic.action_inputs(following, keys.action, action).unsqueeze(0),
            keys,
            self.qvalue_network_params,
            self.target_qvalue_network_params if self.delay_qvalue else None,
        )
        with torch.no_grad():
            next_value = critic.over_critics(coming.value).squeeze(0)
            if self.log_prob is not None:
                log_prob = self.log_prob(self, following, action, given)
                next_value = next_value - self.temperature() * log_prob
            target = self._value_target(transitions, next_value)
        distance = critic.distance(current, target)
        loss = self._fit(distance, critic.diagnostics(current, target), transitions)
        self._leave(transitions, tensordict)
        return loss

    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``w |scale (net - target)|^2 / A``, and diagnostics ``[*B, 1]``."""
        transitions = self._enter(tensordict)
        given = self._draws(draws, transitions)
        with torch.no_grad():
            weighted = self._weighted(transitions, given)
            noised = self._noised(transitions, weighted.action, given)
            wanted = self.target(self, noised, given)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            output = self.actor_network.output(noised.rows if wanted.rows is None else wanted.rows)
        error = (wanted.scale * (output - wanted.output)).square().mean(-1, keepdim=True)
        # Averaged over the sampled steps and the actions.
        loss = (weighted.weight * error).flatten(0, 1).mean(0)
        norm = wanted.output.square().mean(-1, keepdim=True).flatten(0, 1).mean(0).sqrt()
        described = {"target_norm": norm}
        described |= {"weight": weighted.weight.mean(0)} if self.weight.varies else {}
        if weighted.entropy is not None:
            described["weight_entropy"] = weighted.entropy
        if self.measure_entropy:
            described |= self._entropies(transitions, given.get("entropy_noise"))
        return self._reduce(loss, transitions), described

    # -- for the parts ------------------------------------------------------------------------

    @torch.no_grad()
    def values(self, rows: TensorDictBase, action: Tensor) -> Tensor:
        """Values ``[K, *B, 1]`` of actions ``[K, *B, A]`` for rows ``[*B]``, over the critics."""
        observed = rows.select(*self._read_keys(), strict=False).expand(action.shape[:-1])
        return self.critic.over_critics(self.each_value(observed, action))

    def valid_actions(self, transitions: TensorDictBase, action: Tensor | None = None) -> Tensor:
        """Actions of the buffer, or others beside them ``[*B, A]``.

        Padding, which may hold anything, becomes an action in the bounds.
        """
        if action is None:
            action = required(transitions, self.tensor_keys.action)
        return valid_actions(self.actor_network.squash, action, self._valid(transitions, action))

    # -- parts of the terms -------------------------------------------------------------------

    @torch.no_grad()
    def _next_action(self, following: TensorDictBase, noise: Tensor | None) -> Tensor:
        action = self.sample_actions(following, self.best_of, noise, delayed=self.delay_actor)
        if self.best_of == 1:
            return action[0]
        return best_action(action, self.values(following, action))

    def _weighted(self, transitions: TensorDictBase, draws: Draws) -> Weighted:
        return self.weight(self, self.proposal(self, transitions, draws), draws)

    def _noised(self, transitions: TensorDictBase, action: Tensor, draws: Draws) -> Noised:
        """Actions ``[M, *B, A]`` noised to the sampled steps, rows ``[kappa, M, *B]``."""
        given, batch = draws.get("step", 1), transitions.batch_size
        if given is None:
            step = draw_steps(self.denoising_steps, batch, self.sampled_steps, action.device)
        else:
            step = given.squeeze(-1)
        rows = transitions.select(*self._read_keys(), strict=False)
        return noised_actions(self.actor_network, rows, action, step, draws.get("noise", 2))

    def _read_keys(self) -> list[NestedKey]:
        """What actor and critics read, but the action."""
        read = [key for key in self.qvalue_network.in_keys if key != self.tensor_keys.action]
        return list(dict.fromkeys([*observation_keys(self.actor_network), *read]))
