"""DiffSAC: soft actor-critic over the denoising MDP."""

from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from diffpolicy.actors import ChainActor, DenoisingMDP
from diffpolicy.actors.keys import required
from diffpolicy.networks import HLGauss
from objectives import functional as fn
from objectives.base import evaluation_mode
from objectives.chain_checks import MISLED, ChainCheck, chain_check, inspect_chains
from objectives.draws import Draws
from objectives.q_critic import CriticReduction, QNetworks
from objectives.replay_loss import ReplayLoss
from objectives.replayed_steps import REPLAY_DRAWS, LookAhead, ReplayedSteps
from objectives.temperature import LearnedTemperature, Temperature


class _Batch(NamedTuple):
    """One call: transitions ``[*B]``, their sampled rows ``[kappa, *B]``, fresh ones, and more."""

    transitions: TensorDictBase
    rows: TensorDictBase
    fresh: TensorDictBase | None
    draws: Draws
    misled: Tensor | None


class DiffSACLoss(ReplayLoss):
    """Soft actor-critic with the steps of a denoising chain as actions (arXiv 2512.02019).

    Reads transitions ``[*B]`` that keep their chains and returns ``loss_qvalue``, ``loss_actor``
    and, with a learned temperature, ``loss_alpha``, to be summed. Every call draws
    ``sampled_steps`` steps of each chain. The actor's gradient goes through one denoising step,
    never through a chain: with ``target_steps=1`` and stored chains an update costs what SAC's
    does, however long the chain is::

        L_Q  = sum_j (Q_j(s, x_{n+1}, n) - y)^2,   y as in objectives.replayed_steps
        L_pi = T LR_n(x') - min_j Q_j(s, x', n),   x' = m_n + std_n xi
        L_T  = T stopgrad(H - H_target),           H = -N mean(LR)

    No term has a gradient in the parameters of another. To update the policy less often, call
    :meth:`qvalue_loss` for every update and :meth:`actor_loss` and :meth:`alpha_loss` for some.

    The defaults are the published objective with one-step targets. What learned best in
    docs/diffsac.md, and what the trainer uses, is ``squashed_entropy=True, fresh_chains=True,
    center_entropy=True, target_steps=N`` with ``CriticConfig(atoms=None, normalization="layer")``,
    and ``value_scale=1/32`` for normalised rewards.

    Actions that are not the actor's own (a collector's ``init_random_frames``, demonstrations,
    noise added after the actor) need chains that lead to them:
    :meth:`~diffpolicy.actors.DenoisingMDP.chains_for`,
    :class:`~diffpolicy.actors.RandomChains` and, for buffers,
    :class:`~diffpolicy.actors.ActionChains` make them.

    Args:
        actor_network: a :class:`~diffpolicy.actors.ChainActor`, or a ``TensorDictSequential`` of
            encoders and one.
        qvalue_network: reads the observation, ``next_latent`` and ``step``, writes
            ``state_action_value`` ``[*B, E, 1]`` for ``E`` critics (``[*B, 1]`` for one) and, if a
            submodule of it is an :class:`~diffpolicy.networks.HLGauss`,
            ``state_action_value_logits`` ``[*B, E, K]``. Or a list of such modules for one critic
            each, or a tensordict ``EnsembleModule``.
        temperature: a number, or a Temperature, whose target refers to ``entropy``.
        num_qvalue_nets: make so many critics of one network for one critic; None takes it as it is.
        squashed_entropy: measure the entropy after squashing: the last step's cost is then
            ``LR - log |d tanh(x_N)|``, as in DIME. Without it, as published, nothing but the chain
            itself keeps latents away from where tanh is flat.
        sampled_steps: steps of each chain in an update (kappa), of the N different ones.
        target_steps: steps of the current policy that a target simulates before it bootstraps.
            One is the cheapest; more carry rewards through the chain in fewer updates.
        actor_steps: steps that the actor's loss takes, at most to the end of the chain, before the
            critics judge. One, as published, asks the critics of the step itself. With more the
            gradient also goes through the steps after it, whose parameters are held: with exact
            critics its mean is the same, and with ``actor_steps=N`` only the critics of finished
            actions count.
        fresh_chains: train on chains that the current policy draws for the observations of the
            batch; of those that acted only the last steps remain, for the critics, because they
            were rewarded. Inside a chain the environment has no part, so nothing else is lost. It
            costs a forward pass through the chain, without gradient.
        center_entropy: count entropies in targets from the target entropy of a learned temperature
            on, as in the Lagrangian of the constrained problem. Values then do not drift by
            ``T H / (1 - gamma)``, which would make whatever the critics have not seen look better.
            Where episodes terminate, ``-T H_target`` becomes a bonus for every step survived.
        delay_qvalue: whether next values come from a target network (TorchRL's ``SoftUpdate``).
            Without one, current and next pairs share one forward, as for batch normalisation.
        critic_reduction: ``"min"`` or ``"mean"`` over the critics.
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        discount_mode: ``"env"`` (gamma acts between environment steps only) or
            ``"denoising_step"`` (at every denoising step).
        check_chains: what to do about chains that do not lead to the action beside them:
            ``"raise"`` at every call outside of compiled code, ``"report"`` their share as
            ``misled_chain_fraction``, or ``"off"``. None raises if the actor has a ``squash``.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics and the mean over the sampled steps, is written into
    the input as ``td_error`` ``[*B]`` for prioritised replay, unless the input is locked.

    Every random number of a call can be given as ``draws``, see :meth:`draw`.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``entropy`` (of the chain,
    ``-sum_n LR_n``, with ``squashed_entropy`` after squashing: what the temperature's target
    refers to), ``entropy_bound`` (of the action in [-1, 1] units, the prior's term included; if the
    actor has what it needs), ``alpha`` and, with an HL-Gauss critic, ``value_clip_fraction`` (share
    of targets outside its support).

    Raises:
        TypeError: if the actor lacks members of ChainActor (or ``squash_log_det``), or for a bad
            temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        temperature: float | Temperature,
        num_qvalue_nets: int | None = None,
        sampled_steps: int = 1,
        target_steps: int = 1,
        actor_steps: int = 1,
        delay_qvalue: bool = True,
        critic_reduction: CriticReduction = "min",
        loss_function: fn.ValueLoss = "l2",
        discount_mode: fn.DiscountMode = "env",
        squashed_entropy: bool = False,
        fresh_chains: bool = False,
        center_entropy: bool = False,
        check_chains: ChainCheck | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(actor_network, protocol=ChainActor, reduction=reduction)
        self.critic = self._add_qvalue_network(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            separate=separate_losses,
            reduction=critic_reduction,
            loss_function=loss_function,
        )
        self.mdp = DenoisingMDP(self.actor_network)
        self._add_temperature(temperature)
        self.replayed = ReplayedSteps(
            self.mdp,
            self.critic,
            sampled_steps=sampled_steps,
            target_steps=target_steps,
            discount_mode=discount_mode,
            squashed_entropy=squashed_entropy,
        )
        if center_entropy and not self.temperature.learned:
            raise ValueError(
                "center_entropy=True needs a LearnedTemperature, whose target is subtracted; "
                f"got {type(self.temperature).__name__}."
            )
        self.actor_steps = self.replayed.checked_steps("actor_steps", actor_steps)
        self.fresh_chains = fresh_chains
        self.center_entropy = center_entropy
        self.check_chains = chain_check(check_chains, self.actor_network)
        self.make_value_estimator()

    @property
    def value_support(self) -> HLGauss | None:
        """The bins of an HL-Gauss critic, None for a scalar one."""
        return self.critic.bins

    def _default_in_keys(self) -> list[NestedKey]:
        action = [] if self.check_chains == "off" else [self.tensor_keys.action]
        observation = self.mdp.observation_keys
        carried = self.replayed.carried_keys(self.tensor_keys)
        return [*observation, *action, self.chain_keys.latents, *carried]

    def _default_out_keys(self) -> list[NestedKey]:
        alpha = ["loss_alpha"] if self.temperature.learned else []
        bound = ["entropy_bound"] if self.mdp.bounds_entropy else []
        misled = [MISLED] if self.check_chains == "report" else []
        diagnostics = [*self.critic.diagnostic_keys, "entropy", *bound, "alpha", *misled]
        return ["loss_qvalue", "loss_actor", *alpha, *diagnostics]

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on transitions ``[*B]``, for ``draws``.

        With kappa ``sampled_steps`` and M ``target_steps``: ``step`` ``[*B, kappa, 1]``, the steps
        that are trained on; ``proposal`` ``[*B, kappa, A]``, noise of the actor loss; ``prior``
        ``[*B, kappa, A]`` and ``target`` ``[*B, kappa, M, A]``, noise of the steps after them; with
        ``fresh_chains`` also ``chain`` ``[*B, N+1, A]``, and with L > 1 ``actor_steps``
        ``continuation`` ``[*B, kappa, L-1, A]``. All are optional in ``draws``.
        """
        tensordict = self._enter(tensordict)
        draws = self.replayed.draw(tensordict)
        if self.fresh_chains:
            latents = required(tensordict, self.chain_keys.latents)
            draws.set("chain", torch.randn_like(latents))
        if self.actor_steps > 1:
            *rows, _, size = draws["target"].shape
            noise = draws["target"].new_empty(*rows, self.actor_steps - 1, size)
            draws.set("continuation", torch.randn_like(noise))
        return draws

    @dispatch
    def forward(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> TensorDictBase:
        """All loss terms and diagnostics of transitions ``[*B]``, see the class."""
        batch = self._batch(tensordict, draws)
        qvalue, diagnostics = self._qvalue_loss(batch)
        self._leave(batch.transitions, tensordict)
        actor, entropies = self._actor_loss(batch)
        out = {"loss_qvalue": qvalue, "loss_actor": actor, **diagnostics}
        if self.temperature.learned:
            out["loss_alpha"] = self.alpha_loss(batch.transitions, entropies["entropy"])
        described = {k: self._describe(v, batch.transitions) for k, v in entropies.items()}
        out |= {**described, "alpha": self.temperature()}
        if batch.misled is not None:
            out[MISLED] = self._describe(batch.misled, batch.transitions)
        return self._output(out, batch.transitions, tensordict, batch.rows)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        batch = self._batch(tensordict, draws)
        loss, diagnostics = self._qvalue_loss(batch)
        self._leave(batch.transitions, tensordict)
        return loss, diagnostics

    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``T LR_n - Q_n`` of one step, and ``entropy`` and ``entropy_bound`` ``[*B, 1]``."""
        return self._actor_loss(self._batch(tensordict, draws))

    def _batch(self, tensordict: TensorDictBase, draws: TensorDictBase | None) -> _Batch:
        transitions = self._enter(tensordict)
        misled = inspect_chains(self.check_chains, self.mdp, transitions)
        given = Draws(draws, transitions.batch_size, (*REPLAY_DRAWS, "chain", "continuation"))
        optional = (self.value_estimator.tensor_keys.steps_to_next_obs, *self._loss_mask_keys())
        rows = self.replayed.rows(
            transitions, self.tensor_keys, given.get("step", 1), optional_keys=optional
        )
        if not self.fresh_chains:
            return _Batch(transitions, rows, None, given, misled)
        fresh = self.replayed.with_fresh_chains(transitions, given.get("chain"))
        step = rows[self.chain_keys.step].squeeze(-1)
        return _Batch(transitions, rows, self.mdp.rows_at(fresh, step), given, misled)

    def _qvalue_loss(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        distance, diagnostics = self.replayed.temporal_difference(
            self._critic_rows(batch),
            batch.draws,
            self.tensor_keys,
            self.qvalue_network_params,
            self.target_qvalue_network_params if self.delay_qvalue else None,
            estimator=self.value_estimator,
            temperature=self.temperature(),
            step_entropy=self._step_entropy,
        )
        average, rows = self.replayed.average, batch.transitions
        described = {key: average(value, rows) for key, value in diagnostics.items()}
        return self._fit(average(distance, rows), described, rows)

    def _critic_rows(self, batch: _Batch) -> TensorDictBase:
        """Rows whose steps the critics are trained on: last ones are those that were rewarded."""
        rows, fresh = batch.rows, batch.fresh
        if fresh is None:
            return rows
        last, merged = self.mdp.is_last(rows), rows.copy()
        for key in (self.chain_keys.latent, self.chain_keys.next_latent):
            merged.set(key, torch.where(last, rows[key], fresh[key]))
        return merged

    @property
    def _step_entropy(self) -> float:
        """The entropy of a step from which targets count."""
        if self.center_entropy and isinstance(self.temperature, LearnedTemperature):
            return self.temperature.target_entropy / self.mdp.denoising_steps
        return 0.0

    def _actor_loss(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        transitions, average = batch.transitions, self.replayed.average
        rows = batch.rows if batch.fresh is None else batch.fresh
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            proposed = self.mdp.propose(rows, batch.draws.get("proposal", 1))
            cost = self.replayed.cost(proposed)
        ahead = self._actor_path(proposed, cost, batch.draws)
        inputs = ahead.rows.select(*self.qvalue_network.in_keys)
        with evaluation_mode(self.qvalue_network):
            params = self.qvalue_network_params.detach()
            values = self.critic.evaluate(params, inputs, self.tensor_keys)
        value = ahead.weight * self.critic.over_critics(values.value)
        loss = self.temperature() * ahead.cost - value
        entropies = {"entropy": -self.mdp.denoising_steps * average(cost.detach(), transitions)}
        if self.mdp.bounds_entropy:
            bound = self.mdp.entropy_bound(proposed.detach())
            entropies["entropy_bound"] = average(bound.detach(), transitions)
        return self._reduce(average(loss, transitions), transitions), entropies

    def _actor_path(self, proposed: TensorDictBase, cost: Tensor, draws: Draws) -> LookAhead:
        """The proposed steps ``[kappa, *B]`` and those that the actor's loss takes after them."""
        if self.actor_steps == 1:
            return LookAhead(proposed, cost, torch.ones_like(cost))
        noise = draws.get("continuation", 2)
        noise = None if noise is None else noise.movedim(1, 0)
        params = self.actor_network_params.detach()
        with params.to_module(self.actor_network, preserve_module_state=False):
            path = self.mdp.go_on(proposed, self.actor_steps - 1, noise)
            return self.replayed.summed(path, self.value_estimator.gamma)
