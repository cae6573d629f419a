"""DiffWPO: Wasserstein policy optimisation over the denoising MDP."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn
from torchrl.objectives.utils import ValueEstimators

from diffpolicy.actors import ChainActor, DenoisingMDP
from diffpolicy.actors.keys import required
from diffpolicy.networks import HLGauss
from diffpolicy.sde import Gaussian
from objectives import functional as fn
from objectives.chain_checks import MISLED, ChainCheck, chain_check
from objectives.checks import check_not_negative, check_positive
from objectives.estimators import DenoisingTDLambda
from objectives.multiplier import LearnedMultiplier
from objectives.q_critic import CriticReduction, QNetworks
from objectives.replayed_steps import ReplayedSteps
from objectives.temperature import Temperature
from objectives.transitions import ReplayKeys
from objectives.wasserstein_step import WassersteinStep
from objectives.wpo_inputs import WPOBatch, WPOInputs


class DiffWPOLoss(WPOInputs):
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
    class _AcceptedKeys(ReplayKeys):
        """Configurable keys; those of observation and chain are the actor's."""

        value_target: NestedKey = "value_target"

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
        check_positive("kl_bound", kl_bound)
        self.multiplier = LearnedMultiplier(initial_multiplier, kl_bound)
        self.wasserstein = WassersteinStep(
            self.mdp, self.critic, precondition=precondition, kl_samples=kl_samples
        )
        self.register_coeff_buffer("critic_coeff", float(critic_coeff))
        self.make_value_estimator()

    @property
    def value_support(self) -> HLGauss | None:
        """The bins of an HL-Gauss critic, None for a scalar one."""
        return self.critic.bins

    def _default_in_keys(self) -> list[NestedKey]:
        action = [] if self.check_chains == "off" else [self.tensor_keys.action]
        carried = self.replayed.carried_keys(self.tensor_keys)
        transitions = [
            *self.mdp.observation_keys,
            *action,
            self.chain_keys.latents,
            *carried,
        ]
        return [*transitions, *self._behaviour_keys()]

    def _default_out_keys(self) -> list[NestedKey]:
        alpha = ["loss_alpha"] if self.temperature.learned else []
        bound = ["entropy_bound"] if self.mdp.bounds_entropy else []
        diagnostics = ["kl", "trust_region_fraction", "multiplier", "entropy", *bound, "alpha"]
        misled = [MISLED] if self.check_chains == "report" else []
        losses = ["loss_actor", "loss_qvalue", "loss_multiplier", *alpha]
        return [*losses, *diagnostics, *self.critic.diagnostic_keys, *misled]

    def _estimated_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.value_target]

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

    def _qvalue_loss(self, batch: WPOBatch) -> tuple[Tensor, dict[str, Tensor]]:
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

    def _actor_loss(self, batch: WPOBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rows, given, steps = batch.rows, batch.given, self.mdp.denoising_steps
        leading = rows.batch_dims - given.batch_dims  # of the sampled steps
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            denoising = self.actor_network.denoising_kernel(rows)
            next_latent = denoising.sample(batch.draws.get("proposal", leading)).detach()
            log_ratio, slope = self.wasserstein.log_ratio_slope(rows, next_latent, denoising)
        params = self.qvalue_network_params.detach()
        value_slope = self.wasserstein.value_gradient(rows, next_latent, params, self.tensor_keys)
        surrogate = fn.wasserstein_surrogate(slope, value_slope, self.temperature())
        noise = batch.draws.get("divergence", leading + 1)
        kl = steps * self.wasserstein.divergence(
            self._behaviour(rows),
            denoising,
            self._valid(rows, log_ratio),
            None if noise is None else noise.movedim(leading, 0),
        )
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
