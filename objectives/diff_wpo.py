"""DiffWPO: Wasserstein policy optimisation over the denoising MDP."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn
from torchrl.objectives.utils import ValueEstimators

from diffpolicy.actors import ChainActor, DenoisingMDP
from diffpolicy.actors.keys import required
from diffpolicy.networks import HLGauss
from diffpolicy.sde import Gaussian
from objectives import functional as fn
from objectives.base import DiffusionLoss, evaluation_mode
from objectives.chain_checks import MISLED, ChainCheck, chain_check, inspect_chains
from objectives.checks import check_not_negative
from objectives.draws import Draws
from objectives.estimators import DenoisingTDLambda
from objectives.multiplier import LearnedMultiplier
from objectives.q_critic import CriticReduction, QNetworks
from objectives.replayed_steps import REPLAY_DRAWS, ReplayedSteps, detached
from objectives.temperature import Temperature


class _Batch(NamedTuple):
    """One call: rows to train on, what averages over sampled steps belong to, and draws."""

    rows: TensorDictBase
    given: TensorDictBase
    draws: Draws
    misled: Tensor | None
    replayed: bool


class DiffWPOLoss(DiffusionLoss):
    """Wasserstein policy optimisation of denoising kernels in a trust region.

    arXiv 2512.02019 (DiffWPO in version 2, DA-MDP:WPO in version 3); WPO itself: arXiv 2505.00663.
    With ``gl`` and ``gq`` the gradients of ``LR_n`` and ``Q_n`` at a fresh sample of the current
    policy, every step minimises ``(T/2) ||gl - gq / T||^2`` while it is inside of the trust region
    around the behaviour policy, and its distance to it otherwise::

        L_actor      = sum_d stopgrad(T gl - gq) gl    where N KL < bound, else lambda N KL
        L_qvalue     = critic_coeff sum_j d(Q_j(s, x_{n+1}, n), y)
        L_multiplier = -lambda stopgrad(N KL - bound)
        L_alpha      = T stopgrad(H - H_target),       H = -N mean(LR)

    On-policy, with lambda-returns as published::

        loss.value_estimator(rollout)                # [E, T], time last, with chains
        rows = loss.chain_rows(rollout).reshape(-1)  # then epochs of minibatches of rows

    From replay the input is transitions ``[*B]`` that keep their chains and have no
    ``value_target``: ``sampled_steps`` steps of each get one-step targets, as in DiffSACLoss. The
    behaviour policy is then old: ``delay_actor=True`` puts a target actor (``SoftUpdate``) into its
    place, for which ``build_diffwpo_networks`` needs ``normalize_observations=False``.

    Args:
        actor_network: a :class:`~diffpolicy.actors.ChainActor`.
        qvalue_network: as for :class:`~objectives.DiffSACLoss`.
        temperature: a number, or a Temperature. Published: ``LearnedTemperature(0.01,
            target_entropy=-8 * action_dim)``; the target refers to ``entropy``.
        num_qvalue_nets: make so many critics of one network for one critic; None takes it as it is.
        kl_bound: largest divergence of a chain from the behaviour policy's, in nats.
        initial_multiplier: initial weight of the divergence outside of the trust region; learned.
        kl_samples: number of samples of a Monte Carlo divergence, as published; None takes the
            exact one of Gaussian kernels.
        precondition: multiply gradients of a kernel's mean by its variance and those of its std by
            half of it, as WPO does for Gaussians; the gradient through the noising kernel by the
            noising variance.
        delay_actor: whether the trust region is around a target actor.
        delay_qvalue: whether next values come from a target network; for replay.
        critic_reduction: ``"mean"`` or ``"min"`` over the critics.
        critic_coeff: factor of the critic loss.
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        sampled_steps: steps of each chain in an update from replay.
        target_steps: steps of the policy that a one-step target simulates before it bootstraps.
        discount_mode: ``"env"`` (gamma and lambda act between environment steps only) or
            ``"denoising_step"`` (at every denoising step, as in the published configurations).
        check_chains: what to do about chains that do not lead to the action beside them:
            ``"raise"`` (in :meth:`chain_rows`, and at every call on replayed transitions outside
            of compiled code), ``"report"`` their share as ``misled_chain_fraction``, or ``"off"``.
            None raises if the actor has a ``squash``.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.

    ``make_value_estimator`` builds a :class:`~objectives.DenoisingTDLambda` with ``gamma`` (default
    0.99) and ``lmbda`` (default 0.95); one-step targets use its gamma only.

    Outputs to be summed: ``loss_actor``, ``loss_qvalue``, ``loss_multiplier`` and, with a learned
    temperature, ``loss_alpha``. Diagnostics, detached: ``kl`` (of a chain from the behaviour),
    ``trust_region_fraction`` (rows inside), ``multiplier``, ``entropy`` (of the chain,
    ``-sum_n LR_n``: what the temperature's target refers to), ``entropy_bound`` (of the action in
    [-1, 1] units, with the prior's term and that of tanh; if the actor has what it needs),
    ``alpha``, ``q_value``, ``target_value``, ``td_error`` and, with HL-Gauss,
    ``value_clip_fraction``. On replayed transitions ``td_error`` ``[*B]`` is also written into the
    input, unless it is locked.

    Every random number of a call can be given as ``draws``, see :meth:`draw`.

    Raises:
        TypeError: if the actor lacks members of ChainActor, or for a bad temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable keys; those of observation and chain are the actor's.

        ``action`` must be the actor's.
        """

        action: NestedKey = "action"
        state_action_value: NestedKey = "state_action_value"
        state_action_value_logits: NestedKey = "state_action_value_logits"
        value_target: NestedKey = "value_target"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator = ValueEstimators.TDLambda
    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({"critic_coeff"})

    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    critic_coeff: Tensor

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        temperature: float | Temperature,
        num_qvalue_nets: int | None = None,
        kl_bound: float = 0.02,
        initial_multiplier: float = 0.3,
        kl_samples: int | None = None,
        precondition: bool = False,
        delay_actor: bool = False,
        delay_qvalue: bool = False,
        critic_reduction: CriticReduction = "mean",
        critic_coeff: float = 1.0,
        loss_function: fn.ValueLoss = "l2",
        sampled_steps: int = 1,
        target_steps: int = 1,
        discount_mode: fn.DiscountMode = "env",
        check_chains: ChainCheck | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(
            actor_network, protocol=ChainActor, reduction=reduction, delay_actor=delay_actor
        )
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
        )
        self.check_chains = chain_check(check_chains, self.actor_network)
        check_not_negative("critic_coeff", critic_coeff)
        if kl_samples is not None and kl_samples < 1:
            raise ValueError(f"kl_samples must be at least 1, or None, got {kl_samples}.")
        self.multiplier = LearnedMultiplier(initial_multiplier, kl_bound)
        self.kl_samples = kl_samples
        self.precondition = precondition
        self.register_coeff_buffer("critic_coeff", float(critic_coeff))
        self.make_value_estimator()

    @property
    def value_support(self) -> HLGauss | None:
        """The bins of an HL-Gauss critic, None for a scalar one."""
        return self.critic.bins

    def _default_in_keys(self) -> list[NestedKey]:
        action = [] if self.check_chains == "off" else [self.tensor_keys.action]
        carried = self.replayed.carried_keys(self.tensor_keys)
        transitions = [*self.actor_network.in_keys, *action, self.chain_keys.latents, *carried]
        return [*transitions, *self._behaviour_keys()]

    @property
    def row_keys(self) -> list[NestedKey]:
        """Entries that the loss reads from rows; ``in_keys`` are those of transitions."""
        chain = self.chain_keys
        misled = [MISLED] if self.check_chains == "report" else []
        row = [chain.latent, chain.next_latent, chain.step, *self._behaviour_keys(), *misled]
        return [*self.actor_network.in_keys, *row, self.tensor_keys.value_target]

    @property
    def keyword_keys(self) -> list[NestedKey]:
        """Entries that keyword calls may name: those of ``in_keys``, or of ``row_keys``."""
        return list(dict.fromkeys([*self.in_keys, *self.row_keys]))

    def _default_out_keys(self) -> list[NestedKey]:
        alpha = ["loss_alpha"] if self.temperature.learned else []
        bound = ["entropy_bound"] if self.mdp.bounds_entropy else []
        diagnostics = ["kl", "trust_region_fraction", "multiplier", "entropy", *bound, "alpha"]
        misled = [MISLED] if self.check_chains == "report" else []
        losses = ["loss_actor", "loss_qvalue", "loss_multiplier", *alpha]
        return [*losses, *diagnostics, *self.critic.diagnostic_keys, *misled]

    def _behaviour_keys(self) -> list[NestedKey]:
        """Entries that describe the behaviour's kernels, where no target actor does."""
        keys = self.chain_keys
        return [] if self.delay_actor else [keys.kernel_mean, keys.kernel_std]

    def _make_default_estimator(self, **hyperparams: Any) -> DenoisingTDLambda:
        defaults = {"gamma": 0.99, "lmbda": 0.95, "device": self._default_device}
        return DenoisingTDLambda(
            value_network=self.qvalue_network,
            actor=self.actor_network,
            temperature=self.temperature,
            critic_reduction=self.critic.reduction,
            discount_mode=self.replayed.discount_mode,
            **{**defaults, **hyperparams},
        )

    def _forward_value_estimator_keys(self, **kwargs: object) -> None:
        super()._forward_value_estimator_keys(**kwargs)
        # The constructor makes an estimator before set_keys() can announce another value key.
        value = self.tensor_keys.state_action_value
        if self._value_estimator is not None and value in self.qvalue_network.out_keys:
            self._value_estimator.set_keys(value=value)

    def chain_rows(self, rollout: TensorDictBase) -> TensorDictBase:
        """Denoising-MDP rows ``[*B, N]`` of transitions ``[*B]`` with estimated returns.

        Raises:
            ValueError: if chains do not lead to their actions, see ``check_chains``.
        """
        keys, misled = self.tensor_keys, inspect_chains(self.check_chains, self.mdp, rollout)
        if misled is not None:
            rollout = rollout.copy().set(MISLED, misled)
        return self.mdp.rows(
            rollout,
            step_keys=(keys.value_target,),
            carry_keys=(*self._loss_mask_keys(), keys.priority_weight, MISLED),
        )

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on rows or transitions, for ``draws``.

        On rows ``[*B]``: ``proposal`` ``[*B, A]``, and with ``kl_samples`` also ``divergence``
        ``[*B, M, A]``. On rollouts with returns, the same of their rows ``[*B, N]``. On replayed
        transitions ``[*B]`` as :meth:`DiffSACLoss.draw`, and ``divergence``
        ``[*B, kappa, M, A]``. All are optional in ``draws``.
        """
        if self._is_replayed(tensordict):
            draws = self.replayed.draw(self._enter(tensordict))
        else:
            rows = self._estimated_rows(tensordict)
            noise = torch.randn_like(rows[self.chain_keys.latent])
            draws = TensorDict({"proposal": noise}, rows.batch_size)
        if self.kl_samples is not None:
            proposal = draws["proposal"].unsqueeze(-2)
            repeated = proposal.expand(*proposal.shape[:-2], self.kl_samples, proposal.shape[-1])
            draws.set("divergence", torch.randn_like(repeated))
        return draws

    @dispatch(source="keyword_keys")
    def forward(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> TensorDictBase:
        """All loss terms and diagnostics of rows, or of transitions from replay, see the class."""
        batch = self._batch(tensordict, draws)
        actor, diagnostics = self._actor_loss(batch)
        qvalue, fit = self._qvalue_loss(batch)
        if batch.replayed:
            self._leave(batch.given, tensordict)
        out = {**actor, "loss_qvalue": qvalue, **diagnostics, **fit}
        out |= {"alpha": self.temperature(), "multiplier": self.multiplier()}
        if batch.misled is not None:
            out[MISLED] = self._describe(batch.misled, batch.given)
        return self._output(out, batch.given, tensordict, batch.rows)

    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``loss_actor``, ``loss_multiplier`` and ``loss_alpha``, and diagnostics."""
        return self._actor_loss(self._batch(tensordict, draws))

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``critic_coeff`` times the loss of all critics, and diagnostics."""
        batch = self._batch(tensordict, draws)
        loss, fit = self._qvalue_loss(batch)
        if batch.replayed:
            self._leave(batch.given, tensordict)
        return loss, fit

    def _is_replayed(self, tensordict: TensorDictBase) -> bool:
        """Whether a TensorDict holds transitions without estimated returns."""
        is_rows = tensordict.get(self.chain_keys.next_latent, None) is not None
        has_returns = tensordict.get(self.tensor_keys.value_target, None) is not None
        return not (is_rows or has_returns)

    def _estimated_rows(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Rows ``[*R]`` with returns, of rows or of a rollout."""
        if tensordict.get(self.chain_keys.next_latent, None) is None:
            return self.chain_rows(tensordict)
        hint = "; call loss.value_estimator(rollout) before"
        required(tensordict, self.tensor_keys.value_target, hint)
        return tensordict

    def _batch(self, tensordict: TensorDictBase, draws: TensorDictBase | None) -> _Batch:
        names = (*REPLAY_DRAWS, "divergence")
        if not self._is_replayed(tensordict):
            rows = detached(self._estimated_rows(tensordict), self.mdp)
            misled = required(rows, MISLED) if self.check_chains == "report" else None
            drawn = Draws(draws, rows.batch_size, names)
            return _Batch(rows, rows, drawn, misled, replayed=False)
        tensordict = self._enter(tensordict)
        misled = inspect_chains(self.check_chains, self.mdp, tensordict)
        given = Draws(draws, tensordict.batch_size, names)
        optional = (self.value_estimator.tensor_keys.steps_to_next_obs, *self._loss_mask_keys())
        rows = self.replayed.rows(
            tensordict, self.tensor_keys, given.get("step", 1), optional_keys=optional
        )
        return _Batch(rows, tensordict, given, misled, replayed=True)

    def _qvalue_loss(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rows, given, keys = batch.rows, batch.given, self.tensor_keys
        target = rows.get(keys.value_target, None)
        if target is not None:
            inputs = rows.select(*self.qvalue_network.in_keys)
            values = self.critic.evaluate(self.qvalue_network_params, inputs, keys)
            distance = self.critic.distance(values, target)
            fit = self.critic.diagnostics(values, target)
            fit = {key: self._describe(value, given) for key, value in fit.items()}
            return self.critic_coeff * self._reduce(distance, given), fit
        distance, fit = self.replayed.temporal_difference(
            rows,
            batch.draws,
            keys,
            self.qvalue_network_params,
            self.target_qvalue_network_params if self.delay_qvalue else None,
            estimator=self.value_estimator,
            temperature=self.temperature(),
        )
        average = self.replayed.average
        fit = {key: average(value, given) for key, value in fit.items()}
        loss, fit = self._fit(average(distance, given), fit, given)
        return self.critic_coeff * loss, fit

    def _actor_loss(self, batch: _Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rows, given, steps = batch.rows, batch.given, self.mdp.denoising_steps
        leading = rows.batch_dims - given.batch_dims  # of the sampled steps
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            denoising = self.actor_network.denoising_kernel(rows)
            next_latent = denoising.sample(batch.draws.get("proposal", leading)).detach()
            log_ratio, slope = self._log_ratio(rows, next_latent, denoising)
        surrogate = fn.wasserstein_surrogate(
            slope, self._value_gradient(rows, next_latent), self.temperature()
        )
        kl = steps * self._divergence(batch, denoising, leading)
        inside = kl.detach() < self.multiplier.bound
        each = {
            "loss_actor": torch.where(inside, surrogate, self.multiplier() * kl),
            "loss_multiplier": self.multiplier.loss(kl),
            "kl": kl.detach(),
            "trust_region_fraction": inside.to(kl),
            "entropy": -steps * log_ratio.detach(),
        }
        if self.mdp.bounds_entropy:
            keys, moved = self.chain_keys, rows.copy()
            moved.set(keys.next_latent, next_latent).set(keys.log_ratio, log_ratio.detach())
            each["entropy_bound"] = self.mdp.entropy_bound(moved)
        each = {key: self.replayed.average(value, given) for key, value in each.items()}
        if self.temperature.learned:
            each["loss_alpha"] = self.temperature.loss(each["entropy"])
        losses = {k: self._reduce(v, given) for k, v in each.items() if k.startswith("loss_")}
        others = {k: v for k, v in each.items() if not k.startswith("loss_")}
        return losses, {key: self._describe(value, given) for key, value in others.items()}

    def _divergence(self, batch: _Batch, denoising: Gaussian, leading: int) -> Tensor:
        """``KL(behaviour || policy)`` of the steps of rows ``[*R, 1]``."""
        rows, noise = batch.rows, None
        behaviour = self._behaviour(rows)
        valid = self._valid(rows, denoising.mean[..., :1])
        if valid is not None:  # padding may hold anything, a std of zero too
            pairs = zip(behaviour, denoising, strict=True)
            behaviour = Gaussian(*(torch.where(valid, old, new.detach()) for old, new in pairs))
        if self.kl_samples is not None:
            noise = batch.draws.get("divergence", leading + 1)
            if noise is None:
                mean = behaviour.mean
                noise = torch.randn_like(mean.expand(self.kl_samples, *mean.shape))
            else:
                noise = noise.movedim(leading, 0)
        return fn.kernel_divergence(behaviour, denoising, noise)

    def _log_ratio(
        self, rows: TensorDictBase, next_latent: Tensor, denoising: Gaussian
    ) -> tuple[Tensor, Tensor]:
        """``LR_n`` at a sample ``[*R, 1]``, and its gradient there ``[*R, A]``.

        The gradient is ``-(a - m) / std^2 - grad_a log p(x_n | a)``, whose dependence on the
        policy's parameters is kept.
        """
        keys = self.chain_keys

        def log_noising_prob(at: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            moved = rows.select(*self.actor_network.in_keys, keys.latent, keys.step)
            noising = self.actor_network.noising_kernel(moved.set(keys.next_latent, at))
            log_prob = noising.log_prob(rows[keys.latent])
            return log_prob.sum(), (log_prob, noising.std)

        noising_slope, (log_noising, noising_std) = torch.func.grad(log_noising_prob, has_aux=True)(
            next_latent
        )
        log_ratio = denoising.log_prob(next_latent) - log_noising
        mean, std = denoising
        if self.precondition:
            variance = std.square()
            mean = fn.scaled_gradient(mean, variance)
            std = fn.scaled_gradient(std, variance / 2)
            noising_slope = fn.scaled_gradient(noising_slope, noising_std.square())
        return log_ratio, -(next_latent - mean) / std.square() - noising_slope

    def _value_gradient(self, rows: TensorDictBase, next_latent: Tensor) -> Tensor:
        """``grad_a Q_n(s, a)`` ``[*R, A]`` without gradient."""
        params = self.qvalue_network_params.detach()

        def value(at: Tensor) -> Tensor:
            moved = rows.copy().set(self.chain_keys.next_latent, at)
            inputs = moved.select(*self.qvalue_network.in_keys)
            values = self.critic.evaluate(params, inputs, self.tensor_keys)
            return self.critic.over_critics(values.value).sum()

        with evaluation_mode(self.qvalue_network):
            return torch.func.grad(value)(next_latent).detach()

    @torch.no_grad()
    def _behaviour(self, rows: TensorDictBase) -> Gaussian:
        """The kernels that the trust region is around."""
        keys, actor = self.chain_keys, self.actor_network
        if not self.delay_actor:
            hint = "; collect with an actor built with return_chain=True, or use delay_actor=True"
            mean = required(rows, keys.kernel_mean, hint)
            return Gaussian(mean, required(rows, keys.kernel_std, hint))
        with self.target_actor_network_params.to_module(actor, preserve_module_state=False):
            kernel: Gaussian = actor.denoising_kernel(rows)
        return kernel
