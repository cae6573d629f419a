"""DIME: maximum-entropy reinforcement learning by backpropagation through the denoising chain."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from diffpolicy.actors import PathActor, PathSample
from diffpolicy.networks import BatchRenorm, CategoricalSupport
from objectives import distributional as dist
from objectives import functional as fn
from objectives.base import evaluation_mode
from objectives.chain_loss import ChainLoss
from objectives.checks import check_choice, require
from objectives.temperature import Temperature, as_temperature

_CLIP_CHECK_INTERVAL = 256
_CLIP_WARNING = 0.05


class _Values(NamedTuple):
    """What ``E`` critics say: values ``[*B, E, 1]``, and logits ``[*B, E, K]`` if categorical."""

    value: Tensor
    logits: Tensor | None


class DIMELoss(ChainLoss):
    """Soft actor-critic with the entropy bound of a denoising chain (arXiv 2502.02316).

    Reads transitions ``[*B]`` and returns ``loss_critic``, ``loss_actor`` and, with a learned
    temperature, ``loss_alpha``, to be summed. No term has a gradient in the parameters of another.
    To update the policy less often, call :meth:`critic_loss` for every update and
    :meth:`actor_loss` and :meth:`alpha_loss` for some.

    The published critic is a categorical :class:`~diffpolicy.networks.QEnsemble` with batch
    renormalisation and no target network: current and next state-action pairs go through it in
    one forward, in the mode that the critic is in, so that ``loss.train()`` makes it use and track
    batch statistics. The actor loss always runs it in evaluation mode. The classic recipe is a
    scalar critic, ``delay_critic=True``, ``critic_reduction="min"`` and TorchRL's ``SoftUpdate``.

    Args:
        actor_network: a :class:`~diffpolicy.actors.PathActor`.
        critic_network: reads the observation and the action, writes ``state_action_value``
            ``[*B, E, 1]`` for ``E`` critics (``[*B, 1]`` for one) and, if a submodule of it is a
            :class:`~diffpolicy.networks.CategoricalSupport`, ``state_action_value_logits``
            ``[*B, E, K]`` on its atoms.
        temperature: a number, or a Temperature. Published:
            ``LearnedTemperature(1.0, target_entropy=-4 * action_dim)``; the target refers to
            ``-(sum_n LR_n - log |d tanh|)``, without the prior's term.
        value_range: ``(minimum, maximum)`` or ``"auto"`` moves the atoms; None leaves them.
            ``"auto"`` derives the range from the rewards of the first batch that the critic loss
            sees; better call :meth:`derive_value_range` with all data of the warm-up before.
        delay_critic: whether next values come from a target network.
        critic_reduction: ``"mean"`` or, for scalar critics, ``"min"``, over the critics.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        critic_entropy_coeff: weight of the critics' own negative entropy, categorical critics only.
        num_next_actions: number of next actions that the target is averaged over.
        checkpoint_chain: save memory in the actor loss by computing activations of the chain again.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics, is written into the input as ``td_error`` ``[*B]`` for
    prioritised replay, unless the input is locked.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``entropy_bound``,
    ``running_cost``, ``terminal_cost``, ``alpha``, and for categorical critics
    ``clip_fraction`` (probability that targets put outside of the value range) and
    ``critic_entropy``.

    Raises:
        TypeError: if the actor lacks members of PathActor, or for a bad temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable keys; observation and action keys are the actor's."""

        state_action_value: NestedKey = "state_action_value"
        state_action_value_logits: NestedKey = "state_action_value_logits"
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    _actor_protocol = PathActor
    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({"critic_entropy_coeff"})

    critic_network: TensorDictModule
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams
    critic_entropy_coeff: Tensor
    range_derived: Tensor

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: TensorDictModule,
        *,
        temperature: float | Temperature,
        value_range: tuple[float, float] | Literal["auto"] | None = None,
        delay_critic: bool = False,
        critic_reduction: Literal["mean", "min"] = "mean",
        loss_critic_type: fn.ValueLoss = "l2",
        critic_entropy_coeff: float = 0.005,
        num_next_actions: int = 1,
        checkpoint_chain: bool = False,
        separate_losses: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(actor_network, reduction=reduction)
        check_choice("loss_critic_type", loss_critic_type, ("l1", "l2", "smooth_l1"))
        check_choice("critic_reduction", critic_reduction, ("mean", "min"))
        if num_next_actions < 1:
            raise ValueError(f"num_next_actions must be at least 1, got {num_next_actions}.")
        support = _find_support(critic_network)
        _check_critic(critic_network, support, critic_reduction, value_range, delay_critic)
        shared = list(actor_network.parameters()) if separate_losses else None
        self.convert_to_functional(
            critic_network,
            "critic_network",
            create_target_params=delay_critic,
            compare_against=shared,
        )
        self.delay_critic = delay_critic
        self.separate_losses = separate_losses
        self.temperature = as_temperature(temperature)
        # In a tuple, so that it stays a part of the critic alone.
        self._support = (support,)
        self.critic_reduction = critic_reduction
        self.loss_critic_type = loss_critic_type
        self.num_next_actions = num_next_actions
        self.checkpoint_chain = checkpoint_chain
        self.register_coeff_buffer("critic_entropy_coeff", float(critic_entropy_coeff))
        self.register_buffer("range_derived", torch.tensor(value_range != "auto"))
        self._derive_range = value_range == "auto"
        if isinstance(value_range, tuple) and support is not None:
            support.set_range(*value_range)
        self._calls = 0
        self.make_value_estimator()

    @property
    def value_support(self) -> CategoricalSupport | None:
        """The atoms of a categorical critic, None for a scalar one."""
        return self._support[0]

    def _default_in_keys(self) -> list[NestedKey]:
        keys, observation = self.tensor_keys, self.actor_network.in_keys
        following = (*observation, keys.reward, keys.terminated)
        return [
            *observation,
            self.chain_keys.action,
            *(("next", *((key,) if isinstance(key, str) else key)) for key in following),
        ]

    def _default_out_keys(self) -> list[NestedKey]:
        losses: list[NestedKey] = ["loss_critic", "loss_actor"]
        if self.temperature.learned:
            losses.append("loss_alpha")
        values = ["q_value", "target_value", "td_error"]
        if self.value_support is not None:
            values += ["clip_fraction", "critic_entropy"]
        return [*losses, *values, "entropy_bound", "running_cost", "terminal_cost", "alpha"]

    def make_value_estimator(
        self, value_type: ValueEstimators | None = None, **hyperparams: Any
    ) -> "DIMELoss":
        """Set the discount.

        Args:
            value_type: ``ValueEstimators.TD0`` (or ``"td0"``), or an estimator class or instance
                whose ``gamma`` is used. Returns of several steps come from TorchRL's
                ``MultiStepTransform``, whose ``steps_to_next_obs`` sets the power of ``gamma``.
            **hyperparams: ``gamma`` (default 0.99).

        Raises:
            NotImplementedError: for any other estimator type.
        """
        value_type = self.default_value_estimator if value_type is None else value_type
        if value_type not in (ValueEstimators.TD0, "td0"):
            if isinstance(value_type, (ValueEstimators, str)):
                raise NotImplementedError(
                    f"value_type {value_type!r} is not implemented for DIMELoss; use "
                    "ValueEstimators.TD0, or pass an estimator class or instance."
                )
            super().make_value_estimator(value_type, **hyperparams)
        else:
            self.value_type = ValueEstimators.TD0
            defaults = {"gamma": 0.99, "device": self._default_device}
            self._value_estimator = TD0Estimator(value_network=None, **{**defaults, **hyperparams})
        self._forward_value_estimator_keys()
        return self

    def derive_value_range(self, tensordict: TensorDictBase, *, margin: float = 2.0) -> float:
        """Let the atoms span ``+-margin max|r| / (1 - gamma)`` and return this bound.

        Later rewards may be larger than those seen so far: ``clip_fraction`` tells, and a warning.

        Args:
            tensordict: transitions ``[*B]``, the more the better; only rewards are read.
            margin: room for entropy terms and larger rewards.

        Raises:
            ValueError: without a categorical critic, or if no reward differs from zero.
        """
        if self.value_support is None:
            raise ValueError("derive_value_range needs a critic with a CategoricalSupport.")
        bound = float(tensordict["next"][self.tensor_keys.reward].abs().max())
        if bound == 0:
            raise ValueError(
                "the value range cannot be derived from rewards that are all zero; pass "
                "value_range=(minimum, maximum), or derive it from more data."
            )
        limit = dist.symmetric_value_range(bound, float(self.value_estimator.gamma), margin)
        self.value_support.set_range(-limit, limit)
        self.range_derived.fill_(True)
        self._derive_range = False
        return limit

    # -- losses ----------------------------------------------------------------------------

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All loss terms and diagnostics of transitions ``[*B]``, see the class."""
        critic, diagnostics = self.critic_loss(tensordict)
        actor, costs = self.actor_loss(tensordict)
        out = {"loss_critic": critic, "loss_actor": actor, **diagnostics}
        if self.temperature.learned:
            out["loss_alpha"] = self.alpha_loss(tensordict, costs["running_cost"])
        for key, value in costs.items():
            out[key] = self._reduce(value, tensordict, "mean")
        out["entropy_bound"] = -(out["running_cost"] + out["terminal_cost"])
        out["alpha"] = self.temperature()
        batch_size = self._output_batch_size(tensordict)
        out = {key: value.expand(batch_size) for key, value in out.items()}
        self._clear_weakrefs(
            tensordict,
            "actor_network_params",
            "critic_network_params",
            "target_critic_network_params",
        )
        return TensorDict(out, batch_size)

    def critic_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        self._prepare_range(tensordict)
        following = tensordict["next"].expand(self.num_next_actions, *tensordict.batch_size)
        with torch.no_grad():
            path = self._sample_path(following)
        current, coming = self._current_and_next(tensordict, following, path.action)
        atoms = None if self.value_support is None else self.value_support.atoms
        if atoms is None or current.logits is None or coming.logits is None:
            distance, target, diagnostics = self._scalar_distance(
                tensordict, current.value, coming.value, path
            )
        else:
            distance, target, diagnostics = self._categorical_distance(
                tensordict, current.logits, coming.logits, path, atoms
            )
        with torch.no_grad():
            error = (current.value - target.unsqueeze(-2)).abs().amax(-2)
            diagnostics |= {
                "q_value": current.value.detach().mean(-2),
                "target_value": target,
                "td_error": error,
            }
            diagnostics = {k: self._reduce(v, tensordict, "mean") for k, v in diagnostics.items()}
        if not tensordict.is_locked:
            tensordict.set(self.tensor_keys.priority, error.squeeze(-1))
        if "clip_fraction" in diagnostics:
            self._warn_if_clipped(diagnostics["clip_fraction"])
        return self._reduce(distance, tensordict), diagnostics

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``-Q + alpha (run + term)``, and ``running_cost`` and ``terminal_cost`` ``[*B, 1]``."""
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            path = self._sample_path(tensordict, checkpoint=self.checkpoint_chain)
        params = self.critic_network_params.detach()
        with evaluation_mode(self.critic_network):
            values = self._evaluate(params, self._critic_inputs(tensordict, path.action))
        value = self._over_critics(values.value)
        loss = self.temperature() * (path.running_cost + path.terminal_cost) - value
        costs = {"running_cost": path.running_cost, "terminal_cost": path.terminal_cost}
        return self._reduce(loss, tensordict), {k: v.detach() for k, v in costs.items()}

    def alpha_loss(self, tensordict: TensorDictBase, running_cost: Tensor) -> Tensor:
        """Loss of the temperature.

        Args:
            tensordict: transitions ``[*B]``; masks and priority weights are read.
            running_cost: of :meth:`actor_loss` ``[*B, 1]``.
        """
        return self._reduce(self.temperature.loss(-running_cost), tensordict)

    # -- helpers ---------------------------------------------------------------------------

    def _sample_path(self, tensordict: TensorDictBase, *, checkpoint: bool = False) -> PathSample:
        # TorchRL runs losses under deterministic exploration.
        with set_exploration_type(ExplorationType.RANDOM):
            if checkpoint:
                return self.actor_network.sample_path(tensordict, checkpoint=True)
            return self.actor_network.sample_path(tensordict)

    def _critic_inputs(self, tensordict: TensorDictBase, action: Tensor) -> TensorDictBase:
        """Inputs of the critic for an action; never the caller's TensorDict."""
        action_key = self.chain_keys.action
        keys = [key for key in self.critic_network.in_keys if key != action_key]
        return tensordict.select(*keys).set(action_key, action)

    def _evaluate(self, params: TensorDictBase, inputs: TensorDictBase) -> _Values:
        keys, batch = self.tensor_keys, inputs.batch_size
        with params.to_module(self.critic_network, preserve_module_state=False):
            out = self.critic_network(inputs)
        value = out[keys.state_action_value].reshape(*batch, -1, 1)
        if self.value_support is None:
            return _Values(value, None)
        logits = out[keys.state_action_value_logits]
        return _Values(value, logits.reshape(*batch, -1, logits.shape[-1]))

    def _current_and_next(
        self, tensordict: TensorDictBase, following: TensorDictBase, next_action: Tensor
    ) -> tuple[_Values, _Values]:
        """Values of ``(s, a)``, and of ``M`` next pairs without gradient ``[M, *B, E, 1]``."""
        current = self._critic_inputs(tensordict, tensordict[self.chain_keys.action])
        coming = self._critic_inputs(following, next_action)
        if self.delay_critic:
            with torch.no_grad():
                next_values = self._evaluate(self.target_critic_network_params, coming)
            return self._evaluate(self.critic_network_params, current), next_values
        joint = torch.cat((current.unsqueeze(0), coming))
        value, logits = self._evaluate(self.critic_network_params, joint)
        if logits is None:
            return _Values(value[0], None), _Values(value[1:].detach(), None)
        return _Values(value[0], logits[0]), _Values(value[1:].detach(), logits[1:].detach())

    def _over_critics(self, value: Tensor) -> Tensor:
        """Mean or minimum ``[*B, 1]`` over the critics of ``[*B, E, 1]``."""
        return value.amin(-2) if self.critic_reduction == "min" else value.mean(-2)

    def _soft_target(
        self, tensordict: TensorDictBase, next_value: Tensor, path: PathSample
    ) -> Tensor:
        keys = self.tensor_keys
        hint = "collect transitions with `next`, or rename keys with loss.set_keys()."
        reward = require(tensordict["next"], keys.reward, "reward", hint)
        terminated = require(tensordict["next"], keys.terminated, "terminated", hint)
        estimator = self.value_estimator
        steps = tensordict.get(estimator.tensor_keys.steps_to_next_obs, None)
        discount = estimator.gamma if steps is None else estimator.gamma ** steps.view_as(reward)
        cost = path.running_cost + path.terminal_cost
        return dist.soft_target(
            next_value,
            reward.expand_as(cost),
            terminated.expand_as(cost),
            cost,
            discount=discount,
            temperature=self.temperature(),
        )

    @torch.no_grad()
    def _target_distribution(
        self, tensordict: TensorDictBase, next_logits: Tensor, path: PathSample, atoms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Projected mixture of the critics' distributions ``[*B, K]``, and its clipped mass."""
        target_atoms = self._soft_target(tensordict, atoms, path)
        probabilities = next_logits.softmax(-1).mean(-2)
        clipped = dist.clipped_mass(target_atoms, probabilities, atoms)
        projected = dist.project_categorical(target_atoms, probabilities, atoms)
        return projected.mean(0), clipped.mean(0)

    def _categorical_distance(
        self,
        tensordict: TensorDictBase,
        logits: Tensor,
        next_logits: Tensor,
        path: PathSample,
        atoms: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        target, clipped = self._target_distribution(tensordict, next_logits, path, atoms)
        distance = dist.categorical_loss(logits, target, self.critic_entropy_coeff)
        log_q = logits.detach().log_softmax(-1)
        entropy = -(log_q.exp() * log_q).sum(-1).mean(-1, keepdim=True)
        diagnostics = {"clip_fraction": clipped, "critic_entropy": entropy}
        return distance, (target * atoms).sum(-1, keepdim=True), diagnostics

    def _scalar_distance(
        self, tensordict: TensorDictBase, value: Tensor, next_value: Tensor, path: PathSample
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            next_value = self._over_critics(next_value)
            target = self._soft_target(tensordict, next_value, path).mean(0)
        targets = target.unsqueeze(-2).expand_as(value)
        distance = fn.value_distance(value, targets, self.loss_critic_type).sum(-2)
        return distance, target, {}

    def _prepare_range(self, tensordict: TensorDictBase) -> None:
        if not self._derive_range:
            return
        if bool(self.range_derived):  # by an earlier run, loaded from its state
            self._derive_range = False
            return
        limit = self.derive_value_range(tensordict)
        warnings.warn(
            f"value_range='auto': the critic's atoms now span +-{limit:.4g}, derived from the "
            f"{tensordict.numel()} rewards of the first batch. If rewards grow during training, "
            "call loss.derive_value_range() with more data before, or pass value_range.",
            stacklevel=2,
        )

    def _warn_if_clipped(self, clip_fraction: Tensor) -> None:
        """Warn once if targets leave the range; looks at some calls only, to spare devices."""
        if torch.compiler.is_compiling() or self._calls < 0:
            return
        self._calls += 1
        if self._calls % _CLIP_CHECK_INTERVAL == 0 and float(clip_fraction) > _CLIP_WARNING:
            self._calls = -1
            atoms = self.value_support.atoms if self.value_support is not None else clip_fraction
            warnings.warn(
                f"clip_fraction={float(clip_fraction):.3f} of the critics' target probability is "
                f"outside of the value range [{float(atoms[0]):.4g}, {float(atoms[-1]):.4g}]; "
                "pass a wider value_range, or rescale the rewards.",
                stacklevel=2,
            )


def _find_support(critic: nn.Module) -> CategoricalSupport | None:
    return next((m for m in critic.modules() if isinstance(m, CategoricalSupport)), None)


def _check_critic(
    critic: nn.Module,
    support: CategoricalSupport | None,
    critic_reduction: str,
    value_range: tuple[float, float] | str | None,
    delay_critic: bool,
) -> None:
    if support is not None and critic_reduction == "min":
        raise ValueError(
            "critic_reduction='min' needs scalar critics; for categorical ones use 'mean'."
        )
    if support is None and value_range is not None:
        raise ValueError(
            f"value_range={value_range!r} needs a categorical critic; leave it out, or give the "
            "critic a CategoricalSupport."
        )
    if isinstance(value_range, str) and value_range != "auto":
        raise ValueError(
            f"value_range must be (minimum, maximum), 'auto' or None, got {value_range!r}."
        )
    if delay_critic and any(isinstance(m, (BatchRenorm, _BatchNorm)) for m in critic.modules()):
        raise ValueError(
            "delay_critic=True does not go with batch normalisation, whose running statistics "
            "target updates leave behind; use layer normalisation or delay_critic=False."
        )
