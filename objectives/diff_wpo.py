"""DiffWPO: Wasserstein policy optimisation over the denoising MDP."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn
from torchrl.objectives.utils import ValueEstimators

from diffpolicy.actors import chain_rows
from diffpolicy.actors.keys import required
from diffpolicy.sde import Gaussian, gaussian_log_prob
from objectives import functional as fn
from objectives import wasserstein
from objectives.advantages import DenoisingTDLambda
from objectives.base import evaluation_mode
from objectives.checks import check_not_negative
from objectives.denoising_q import DenoisingQLoss
from objectives.multiplier import LearnedMultiplier
from objectives.q_loss import CriticReduction
from objectives.temperature import Temperature


class DiffWPOLoss(DenoisingQLoss):
    """Wasserstein policy optimisation of denoising kernels in a trust region.

    arXiv 2512.02019 (DiffWPO in version 2, DA-MDP:WPO in version 3); WPO itself: arXiv 2505.00663.
    With ``gl`` and ``gq`` the gradients of ``LR_n`` and ``Q_n`` at a fresh sample of the current
    policy, every step minimises ``(T/2) ||gl - gq / T||^2`` while it is inside of the trust region
    around the behaviour policy, and its distance to it otherwise.

    On-policy, with lambda-returns as published::

        loss.value_estimator(rollout)                # [E, T], time last, with chains
        rows = loss.chain_rows(rollout).reshape(-1)  # then epochs of minibatches of rows

    From replay the input is transitions ``[*B]`` that keep their chains and have no
    ``value_target``: ``sampled_steps`` steps of each get one-step targets, as in DiffSACLoss. The
    behaviour policy is then old: ``delay_actor=True`` puts a target actor (``SoftUpdate``) into its
    place, for which ``build_diffwpo_networks`` needs ``normalize_observations=False``.

    Args:
        actor_network: a :class:`~diffpolicy.actors.ChainActor`.
        critic_network: as for :class:`~objectives.DiffSACLoss`.
        temperature: a number, or a Temperature. Published: ``LearnedTemperature(0.01,
            target_entropy=-8 * action_dim)``; the entropy is ``-sum_n LR_n``.
        kl_bound: largest divergence of a chain from the behaviour policy's, in nats.
        initial_multiplier: initial weight of the divergence outside of the trust region; learned.
        kl_samples: number of samples of a Monte Carlo divergence, as published; None takes the
            exact one of Gaussian kernels.
        precondition: multiply gradients of a kernel's mean by its variance and those of its std by
            half of it, as WPO does for Gaussians; the gradient through the noising kernel by the
            noising variance.
        delay_actor: whether the trust region is around a target actor.
        delay_critic: whether next values come from a target network; for replay.
        critic_reduction: ``"mean"`` or ``"min"`` over the critics.
        critic_coeff: factor of the critic loss.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        sampled_steps: steps of each chain in an update from replay.
        target_steps: steps of the policy that a one-step target simulates before it bootstraps.
        discount_mode: ``"env"`` (gamma and lambda act between environment steps only) or
            ``"denoising_step"`` (at every denoising step, as in the published configurations).
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    ``make_value_estimator`` builds a :class:`~objectives.DenoisingTDLambda` with ``gamma`` (default
    0.99) and ``lmbda`` (default 0.95); one-step targets use its gamma only.

    Outputs to be summed: ``loss_actor``, ``loss_critic``, ``loss_multiplier`` and, with a learned
    temperature, ``loss_alpha``. Diagnostics, detached: ``kl`` (of a chain from the behaviour),
    ``trust_region_fraction`` (rows inside), ``multiplier``, ``entropy_bound``, ``alpha``,
    ``q_value``, ``target_value``, ``td_error`` and, with HL-Gauss, ``value_clip_fraction``.

    Raises:
        TypeError: if the actor lacks members of ChainActor, or for a bad temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    @dataclass
    class _AcceptedKeys(DenoisingQLoss._AcceptedKeys):
        """Configurable keys; those of observation and chain are the actor's."""

        value_target: NestedKey = "value_target"
        done: NestedKey = "done"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator = ValueEstimators.TDLambda
    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({"critic_coeff"})

    critic_coeff: Tensor

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: TensorDictModule,
        *,
        temperature: float | Temperature,
        kl_bound: float = 0.02,
        initial_multiplier: float = 0.3,
        kl_samples: int | None = None,
        precondition: bool = False,
        delay_actor: bool = False,
        delay_critic: bool = False,
        critic_reduction: CriticReduction = "mean",
        critic_coeff: float = 1.0,
        loss_critic_type: fn.ValueLoss = "l2",
        sampled_steps: int = 1,
        target_steps: int = 1,
        discount_mode: fn.DiscountMode = "env",
        separate_losses: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            critic_network,
            temperature=temperature,
            sampled_steps=sampled_steps,
            target_steps=target_steps,
            delay_critic=delay_critic,
            delay_actor=delay_actor,
            critic_reduction=critic_reduction,
            loss_critic_type=loss_critic_type,
            discount_mode=discount_mode,
            separate_losses=separate_losses,
            reduction=reduction,
        )
        check_not_negative("critic_coeff", critic_coeff)
        if kl_samples is not None and kl_samples < 1:
            raise ValueError(f"kl_samples must be at least 1, or None, got {kl_samples}.")
        self.multiplier = LearnedMultiplier(initial_multiplier, kl_bound)
        self.kl_samples = kl_samples
        self.precondition = precondition
        self.register_coeff_buffer("critic_coeff", float(critic_coeff))
        self.make_value_estimator()

    def _default_in_keys(self) -> list[NestedKey]:
        return [*super()._default_in_keys(), *self._behaviour_keys()]

    def _default_out_keys(self) -> list[NestedKey]:
        losses: list[NestedKey] = ["loss_actor", "loss_critic", "loss_multiplier"]
        if self.temperature.learned:
            losses.append("loss_alpha")
        diagnostics = ["kl", "trust_region_fraction", "multiplier", "entropy_bound", "alpha"]
        return [*losses, *diagnostics, *self._critic_out_keys()]

    def _behaviour_keys(self) -> list[NestedKey]:
        """Entries that describe the behaviour's kernels, where no target actor does."""
        keys = self.chain_keys
        return [] if self.delay_actor else [keys.kernel_mean, keys.kernel_std]

    def _make_default_estimator(self, **hyperparams: Any) -> DenoisingTDLambda:
        defaults = {"gamma": 0.99, "lmbda": 0.95, "device": self._default_device}
        return DenoisingTDLambda(
            value_network=self.critic_network,
            actor=self.actor_network,
            temperature=self.temperature,
            critic_reduction=self.critic_reduction,
            discount_mode=self.discount_mode,
            **{**defaults, **hyperparams},
        )

    def _forward_value_estimator_keys(self, **kwargs: object) -> None:
        super()._forward_value_estimator_keys(**kwargs)
        # The constructor makes an estimator before set_keys() can announce another value key.
        value = self.tensor_keys.state_action_value
        if self._value_estimator is not None and value in self.critic_network.out_keys:
            self._value_estimator.set_keys(value=value)

    def chain_rows(self, rollout: TensorDictBase) -> TensorDictBase:
        """Denoising-MDP rows ``[*B, N]`` of transitions ``[*B]`` with estimated returns."""
        keys = self.tensor_keys
        return chain_rows(
            rollout,
            observation_keys=self.actor_network.in_keys,
            keys=self.chain_keys,
            denoising_steps=self.denoising_steps,
            step_keys=(keys.value_target,),
            carry_keys=(*self._loss_mask_keys(), keys.priority_weight),
        )

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All loss terms and diagnostics of rows, or of transitions from replay, see the class."""
        rows, given = self._rows(tensordict)
        actor, diagnostics = self._actor_loss(rows, given)
        critic, critic_diagnostics = self._any_critic_loss(rows, given)
        out = {**actor, "loss_critic": critic, **diagnostics, **critic_diagnostics}
        out |= {"alpha": self.temperature(), "multiplier": self.multiplier()}
        batch_size = self._output_batch_size(given)
        out = {key: value.expand(batch_size) for key, value in out.items()}
        self._clear_weakrefs(
            tensordict,
            rows,
            "actor_network_params",
            "target_actor_network_params",
            "critic_network_params",
            "target_critic_network_params",
        )
        return TensorDict(out, batch_size)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``loss_actor``, ``loss_multiplier`` and ``loss_alpha``, and diagnostics."""
        return self._actor_loss(*self._rows(tensordict))

    def critic_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``critic_coeff`` times the loss of all critics, and diagnostics."""
        return self._any_critic_loss(*self._rows(tensordict))

    def _rows(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """Rows to train on, and what their averages over sampled steps belong to."""
        keys = self.tensor_keys
        if tensordict.get(self.chain_keys.next_latent, None) is not None:
            required(tensordict, keys.value_target, "; call loss.value_estimator(rollout) before")
            return self._detached(tensordict), tensordict
        if tensordict.get(keys.value_target, None) is not None:
            rows = self._detached(self.chain_rows(tensordict))
            return rows, rows
        return self._sampled_rows(tensordict), tensordict

    def _any_critic_loss(
        self, rows: TensorDictBase, given: TensorDictBase
    ) -> tuple[Tensor, dict[str, Tensor]]:
        target = rows.get(self.tensor_keys.value_target, None)
        if target is None:
            loss, diagnostics = self._critic_loss(rows, given)
        else:
            values = self._evaluate(self.critic_network_params, self._critic_inputs(rows))
            loss = self._fit_loss(values, target, given)
            diagnostics = self._fit_diagnostics(values, target, given)
            diagnostics = {k: self._reduce(v, given, "mean") for k, v in diagnostics.items()}
        return self.critic_coeff * loss, diagnostics

    def _actor_loss(
        self, rows: TensorDictBase, given: TensorDictBase
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            denoising = self.actor_network.denoising_kernel(rows)
            noise = torch.randn_like(denoising.mean)
            next_latent = (denoising.mean + denoising.std * noise).detach()
            log_ratio, slope = self._log_ratio(rows, next_latent, denoising)
        surrogate = wasserstein.wasserstein_surrogate(
            slope, self._value_gradient(rows, next_latent), self.temperature()
        )
        behaviour = self._behaviour(rows)
        valid = self._valid(rows, log_ratio)
        if valid is not None:  # padding may hold anything, a std of zero too
            pairs = zip(behaviour, denoising, strict=True)
            behaviour = Gaussian(*(torch.where(valid, old, new.detach()) for old, new in pairs))
        step_kl = wasserstein.kernel_divergence(behaviour, denoising, self.kl_samples)
        kl = self.denoising_steps * step_kl
        inside = kl.detach() < self.multiplier.bound
        loss = torch.where(inside, surrogate, self.multiplier() * kl)
        average = {
            "loss_actor": loss,
            "loss_multiplier": self.multiplier.loss(kl),
            "kl": kl.detach(),
            "trust_region_fraction": inside.to(kl),
            "entropy_bound": -self.denoising_steps * log_ratio.detach(),
        }
        average = {key: self._average(value, given) for key, value in average.items()}
        if self.temperature.learned:
            average["loss_alpha"] = self.temperature.loss(average["entropy_bound"])
        losses = {k: self._reduce(v, given) for k, v in average.items() if k.startswith("loss_")}
        others = {k: v for k, v in average.items() if not k.startswith("loss_")}
        return losses, {k: self._reduce(v, given, "mean") for k, v in others.items()}

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
            log_prob = gaussian_log_prob(rows[keys.latent], noising)
            return log_prob.sum(), (log_prob, noising.std)

        noising_slope, (log_noising, noising_std) = torch.func.grad(log_noising_prob, has_aux=True)(
            next_latent
        )
        log_ratio = gaussian_log_prob(next_latent, denoising) - log_noising
        mean, std = denoising
        if self.precondition:
            variance = std.square()
            mean = wasserstein.scaled_gradient(mean, variance)
            std = wasserstein.scaled_gradient(std, variance / 2)
            noising_slope = wasserstein.scaled_gradient(noising_slope, noising_std.square())
        return log_ratio, -(next_latent - mean) / std.square() - noising_slope

    def _value_gradient(self, rows: TensorDictBase, next_latent: Tensor) -> Tensor:
        """``grad_a Q_n(s, a)`` ``[*R, A]`` without gradient."""
        params = self.critic_network_params.detach()

        def value(at: Tensor) -> Tensor:
            moved = rows.copy().set(self.chain_keys.next_latent, at)
            values = self._evaluate(params, self._critic_inputs(moved))
            return self._over_critics(values.value).sum()

        with evaluation_mode(self.critic_network):
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
