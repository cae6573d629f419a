"""DiffPPO: proximal policy optimisation over the denoising MDP."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn
from torchrl.objectives.utils import ValueEstimators

from diffpolicy.actors import ChainActor, DenoisingMDP
from diffpolicy.actors.keys import required
from diffpolicy.networks import HLGauss
from diffpolicy.networks.ranks import sum_over_ranks
from diffpolicy.sde import Gaussian, gaussian_kl
from objectives import functional as fn
from objectives.base import DiffusionLoss
from objectives.chain_checks import MISLED, ChainCheck, chain_check
from objectives.checks import check_choice, check_not_negative, check_positive
from objectives.estimators import DenoisingGAE
from objectives.row_inputs import RowInputs
from objectives.temperature import Temperature


class DiffPPOLoss(RowInputs, DiffusionLoss):
    """Clipped policy optimisation with one likelihood ratio per denoising step.

    arXiv 2512.02019 (DiffPPO in version 2, DA-MDP:PPO in version 3). With temperature 0 the
    noising kernel drops out and the loss is that of DPPO. With ``rho = q / q_old`` of the step that
    was taken and ``A~ = A + T (LR_old - LR)`` without gradient, normalised over the minibatch::

        L_objective = -min(rho A~, clip(rho, 1 - eps, 1 + eps) A~)
        L_noising   = -stopgrad(rho) T log p(x_n | x_{n+1})   where L_objective has a gradient
        L_critic    = critic_coeff d(V(s, x_n, n), y)
        L_alpha     = T stopgrad(H - H_target),   H = -N mean(LR)

    The input is either a rollout ``[*B, T]`` (time last) with chains, on which advantages are
    estimated, or denoising-MDP rows ``[*B]`` that already carry them. Usually::

        loss.value_estimator(rollout)                # once per rollout
        rows = loss.chain_rows(rollout).reshape(-1)  # then epochs of minibatches of rows

    Args:
        actor_network: a :class:`~diffpolicy.actors.ChainActor`, or encoders and one in sequence.
        critic_network: ``V(s, x_n, n)``: reads the observation, ``latent`` and ``step``, writes
            ``state_value`` ``[*B, 1]`` and, for an HL-Gauss critic, ``state_value_logits``.
        temperature: a number, or a Temperature, whose target refers to ``entropy``.
        clip_epsilon: half width of the clip range of the ratio.
        critic_coeff: factor of the critic loss.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"``; unused with ``value_support``.
        value_support: the HL-Gauss head of a categorical critic. By default it is found as
            a submodule of the critic.
        clip_value: clip range of the value prediction around its old value; None is no
            clipping. Scalar critics only.
        advantage_normalization: ``"center"``, ``"standardize"`` or None.
        check_chains: what to do about chains that do not lead to the action beside them:
            ``"raise"`` in :meth:`chain_rows`, ``"report"`` their share as
            ``misled_chain_fraction``, or ``"off"``. None raises if the actor has a ``squash``.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.

    ``make_value_estimator`` builds a :class:`~objectives.DenoisingGAE` with ``gamma`` (default
    0.99), ``lmbda`` (default 0.95) and ``discount_mode`` (default ``"env"``).

    Outputs to be summed: ``loss_objective``, ``loss_noising``, ``loss_critic`` and, with a learned
    temperature, ``loss_alpha``. Diagnostics, detached: ``kl`` (exact Gaussian KL from the
    behaviour kernels, summed over a chain, in nats), ``kl_approx`` (mean of ``rho - 1 - log rho``
    times N), ``clip_fraction`` (of the ratios), ``ESS``, ``max_ratio``, ``entropy`` (of the chain,
    ``-sum_n LR_n``: what the temperature's target refers to), ``entropy_bound`` (of the action in
    [-1, 1] units, with the prior's term and that of tanh; if the actor has what it needs),
    ``alpha``, ``explained_variance`` and, with an HL-Gauss critic, ``value_clip_fraction`` (share
    of value targets outside its support). ``ESS``, ``max_ratio`` and ``explained_variance`` are
    statistics of the whole batch, also with ``reduction="none"``.

    A call on a rollout draws the chains after the ends of trajectories; they can be given as
    ``draws``, see :meth:`draw`. A call on rows draws nothing.

    Raises:
        TypeError: if the actor lacks members of ChainActor, or for a bad temperature type.
        ValueError: for arguments outside their range.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable keys; those of the chain are the actor's :class:`ActorKeys`.

        ``action`` must be the actor's.
        """

        action: NestedKey = "action"
        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        value: NestedKey = "state_value"
        value_logits: NestedKey = "state_value_logits"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator = ValueEstimators.GAE
    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({"clip_epsilon", "critic_coeff"})

    critic_network: TensorDictModule
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams
    clip_epsilon: Tensor
    critic_coeff: Tensor

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: TensorDictModule,
        *,
        temperature: float | Temperature = 0.0,
        clip_epsilon: float = 0.2,
        critic_coeff: float = 0.5,
        loss_critic_type: fn.ValueLoss = "smooth_l1",
        value_support: HLGauss | None = None,
        clip_value: float | None = None,
        advantage_normalization: fn.AdvantageNormalization | None = "center",
        check_chains: ChainCheck | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(actor_network, protocol=ChainActor, reduction=reduction)
        self.mdp = DenoisingMDP(self.actor_network)
        heads = (module for module in critic_network.modules() if isinstance(module, HLGauss))
        support = value_support or next(heads, None)
        check_positive("clip_epsilon", clip_epsilon)
        check_not_negative("critic_coeff", critic_coeff)
        check_choice("loss_critic_type", loss_critic_type, ("l1", "l2", "smooth_l1"))
        normalizations = ("center", "standardize", None)
        check_choice("advantage_normalization", advantage_normalization, normalizations)
        if clip_value is not None:
            check_positive("clip_value", clip_value)
            if support is not None:
                raise ValueError(
                    f"clip_value={clip_value} needs a scalar critic, but the critic has an "
                    "HL-Gauss head; leave clip_value out."
                )
        shared = list(self.actor_network.parameters()) if separate_losses else None
        self.convert_to_functional(critic_network, "critic_network", compare_against=shared)
        self.separate_losses = separate_losses
        self._add_temperature(temperature)
        self.check_chains = chain_check(check_chains, self.actor_network)
        self.value_support = support
        self.loss_critic_type = loss_critic_type
        self.clip_value = clip_value
        self.advantage_normalization = advantage_normalization
        self.register_coeff_buffer("clip_epsilon", float(clip_epsilon))
        self.register_coeff_buffer("critic_coeff", float(critic_coeff))
        self.make_value_estimator()

    def _default_in_keys(self) -> list[NestedKey]:
        action = [] if self.check_chains == "off" else [self.tensor_keys.action]
        return [*self.value_estimator.in_keys, *action]

    @property
    def row_keys(self) -> list[NestedKey]:
        """Entries that the loss reads from rows; ``in_keys`` are those of rollouts."""
        keys, chain = self.tensor_keys, self.chain_keys
        optional = [] if self.clip_value is None else [keys.value]
        optional += [MISLED] if self.check_chains == "report" else []
        row = (chain.latent, chain.next_latent, chain.step, *chain.per_step)
        return [*self.mdp.observation_keys, *row, keys.advantage, keys.value_target, *optional]

    def _estimated_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        return [keys.advantage, keys.value_target, keys.value]

    def _default_out_keys(self) -> list[NestedKey]:
        losses: list[NestedKey] = ["loss_objective", "loss_noising", "loss_critic"]
        losses += ["loss_alpha"] if self.temperature.learned else []
        diagnostics = ["kl", "kl_approx", "clip_fraction", "ESS", "max_ratio"]
        bound = ["entropy_bound"] if self.mdp.bounds_entropy else []
        diagnostics += ["entropy", *bound, "alpha", "explained_variance"]
        diagnostics += [] if self.value_support is None else ["value_clip_fraction"]
        diagnostics += [MISLED] if self.check_chains == "report" else []
        return [*losses, *diagnostics]

    def _make_default_estimator(self, **hyperparams: Any) -> DenoisingGAE:
        defaults = {"gamma": 0.99, "lmbda": 0.95, "device": self._default_device}
        return DenoisingGAE(
            value_network=self.critic_network,
            actor=self.actor_network,
            temperature=self.temperature,
            **{**defaults, **hyperparams},
        )

    def _forward_value_estimator_keys(self, **kwargs: object) -> None:
        # The constructor makes an estimator before set_keys() can announce another value key.
        if "value" in kwargs or self.tensor_keys.value in self.critic_network.out_keys:
            super()._forward_value_estimator_keys(**kwargs)

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call, for ``draws``: see the value estimator's ``draw``."""
        if self._is_rows(tensordict) or self._has_advantages(tensordict):
            return TensorDict(batch_size=tensordict.batch_size)
        draws: TensorDictBase = self.value_estimator.draw(tensordict)
        return draws

    @dispatch(source="keyword_keys")
    def forward(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> TensorDictBase:
        """All loss terms and diagnostics of a rollout or of rows, see the class."""
        rows = self._as_rows(tensordict, draws)
        objective, diagnostics = self.actor_loss(rows)
        critic, critic_diagnostics = self.critic_loss(rows)
        out = {**objective, "loss_critic": critic, **diagnostics, **critic_diagnostics}
        out["alpha"] = self.temperature()
        if self.check_chains == "report":
            out[MISLED] = self._describe(_entry(rows, MISLED), rows)
        return self._output(out, rows, tensordict)

    def actor_loss(self, rows: TensorDictBase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Policy terms (``loss_objective``, ``loss_noising``, ``loss_alpha``) and diagnostics.

        Args:
            rows: denoising-MDP rows ``[*B]`` with ``advantage`` and the behaviour's entries.
        """
        keys, zero = self.chain_keys, self.temperature.is_zero
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            denoising = self.actor_network.denoising_kernel(rows)
            with torch.no_grad() if zero else contextlib.nullcontext():
                noising = self.actor_network.noising_kernel(rows)
        log_prob = denoising.log_prob(_entry(rows, keys.next_latent))
        noising_log_prob = noising.log_prob(_entry(rows, keys.latent))
        log_weight = log_prob - _entry(rows, keys.log_prob)
        log_ratio = (log_prob - noising_log_prob).detach()
        advantage, scale = self._advantage(rows, log_ratio)
        surrogate = fn.clipped_surrogate(log_weight, advantage, self.clip_epsilon)
        temperature = self.temperature()
        noising_loss = fn.noising_surrogate(
            log_weight, surrogate.alive, noising_log_prob, temperature / scale
        )
        entropy = -self.mdp.denoising_steps * log_ratio
        losses = {
            "loss_objective": self._reduce(surrogate.loss, rows),
            "loss_noising": self._reduce(noising_loss, rows),
        }
        if self.temperature.learned:
            losses["loss_alpha"] = self._reduce(self.temperature.loss(entropy), rows)
        with torch.no_grad():
            behaviour = Gaussian(_entry(rows, keys.kernel_mean), _entry(rows, keys.kernel_std))
            each = {"kl": self.mdp.denoising_steps * gaussian_kl(behaviour, denoising)}
            if self.mdp.bounds_entropy:
                taken = rows.copy().set(keys.log_ratio, log_ratio)
                each["entropy_bound"] = self.mdp.entropy_bound(taken)
            each["entropy"] = entropy
            return losses, self._policy_diagnostics(rows, log_weight, each)

    def critic_loss(self, rows: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``critic_coeff`` times the value loss, and diagnostics of the critic."""
        keys = self.tensor_keys
        target = _entry(rows, keys.value_target)
        with self.critic_network_params.to_module(self.critic_network, preserve_module_state=False):
            out = self.critic_network(rows.select(*self.critic_network.in_keys))
        value = out[keys.value]
        if self.value_support is not None:
            distance = self.value_support.loss(out[keys.value_logits], target)
        else:
            old = None if self.clip_value is None else _entry(rows, keys.value)
            distance = fn.clipped_distance(
                value, target, self.loss_critic_type, old, self.clip_value
            )
        fit = fn.explained_variance(value.detach(), target, self._valid(rows, target))
        diagnostics = {"explained_variance": fit}
        if self.value_support is not None:
            outside = self.value_support.outside(target).to(target)
            diagnostics["value_clip_fraction"] = self._describe(outside, rows)
        return self.critic_coeff * self._reduce(distance, rows), diagnostics

    def _has_advantages(self, tensordict: TensorDictBase) -> bool:
        return tensordict.get(self.tensor_keys.advantage, None) is not None

    def _as_rows(self, tensordict: TensorDictBase, draws: TensorDictBase | None) -> TensorDictBase:
        if self._is_rows(tensordict):
            _entry(tensordict, self.tensor_keys.advantage)
            return tensordict
        if self._has_advantages(tensordict):
            return self.chain_rows(tensordict)
        rollout, params = tensordict.copy(), self.critic_network_params.detach()
        self.value_estimator(rollout, params=params, target_params=params, draws=draws)
        return self.chain_rows(rollout)

    def _advantage(self, rows: TensorDictBase, log_ratio: Tensor) -> fn.NormalizedAdvantage:
        advantage = fn.refreshed_advantage(
            _entry(rows, self.tensor_keys.advantage),
            _entry(rows, self.chain_keys.log_ratio),
            log_ratio,
            self.temperature(),
        )
        return fn.normalized_advantage(
            advantage, self.advantage_normalization, self._valid(rows, advantage), sum_over_ranks
        )

    def _policy_diagnostics(
        self, rows: TensorDictBase, log_weight: Tensor, each: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Diagnostics of rows ``[*B, 1]``, those of the ratios added."""
        ratios = fn.ratio_statistics(log_weight, self.clip_epsilon, self._valid(rows, log_weight))
        approximate = self.mdp.denoising_steps * ratios.divergence
        each = {**each, "kl_approx": approximate, "clip_fraction": ratios.outside}
        described = {key: self._describe(value, rows) for key, value in each.items()}
        return {**described, "ESS": ratios.ess, "max_ratio": ratios.largest}


def _entry(tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """An entry of rows that :meth:`DiffPPOLoss.chain_rows` writes, or a KeyError that says so."""
    hint = (
        "; call loss.value_estimator(rollout), then loss.chain_rows(rollout), or rename keys with "
        "loss.set_keys()"
    )
    return required(tensordict, key, hint)
