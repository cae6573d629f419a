"""The critics of soft actor-critic methods with diffusion policies."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams, unravel_key
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from diffpolicy.actors import PathActor, PathSample
from diffpolicy.actors.keys import required
from diffpolicy.networks import BatchRenorm, CategoricalSupport, RunningNorm
from objectives import distributional as dist
from objectives import functional as fn
from objectives.chain_loss import ChainLoss, find_submodule
from objectives.checks import check_choice
from objectives.temperature import Temperature, as_temperature
from objectives.value_range import ValueRange


class _Values(NamedTuple):
    """What ``E`` critics say: values ``[*B, E, 1]``, and logits ``[*B, E, K]`` if categorical."""

    value: Tensor
    logits: Tensor | None


class SoftQLoss(ChainLoss):
    """Base of off-policy losses: critics trained towards soft Q targets.

    Subclasses add the losses of actor and temperature. Arguments and keys are those of
    :class:`~objectives.DIMELoss`.
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
        support = find_submodule(critic_network, CategoricalSupport)
        _check_critic(critic_network, support, critic_reduction, delay_critic)
        shared = list(actor_network.parameters()) if separate_losses else None
        self.convert_to_functional(
            critic_network,
            "critic_network",
            create_target_params=delay_critic,
            compare_against=shared,
        )
        self.temperature = as_temperature(temperature)
        self.value_range = ValueRange(support, value_range)
        self.delay_critic = delay_critic
        self.critic_reduction = critic_reduction
        self.loss_critic_type = loss_critic_type
        self.num_next_actions = num_next_actions
        self.checkpoint_chain = checkpoint_chain
        self.separate_losses = separate_losses
        self.register_coeff_buffer("critic_entropy_coeff", float(critic_entropy_coeff))
        self.make_value_estimator()

    @property
    def value_support(self) -> CategoricalSupport | None:
        """The atoms of a categorical critic, None for a scalar one."""
        return self.value_range.support

    def _default_in_keys(self) -> list[NestedKey]:
        keys, observation = self.tensor_keys, self.actor_network.in_keys
        following = (*observation, keys.reward, keys.terminated)
        return [
            *observation,
            self.chain_keys.action,
            *(unravel_key(("next", key)) for key in following),
        ]

    def _critic_out_keys(self) -> list[NestedKey]:
        """Diagnostics of :meth:`critic_loss`."""
        categorical = [] if self.value_support is None else ["clip_fraction", "critic_entropy"]
        return ["q_value", "target_value", "td_error", *categorical]

    def _make_default_estimator(self, **hyperparams: Any) -> TD0Estimator:
        # Only its discount is used. Returns of several steps come from TorchRL's
        # MultiStepTransform, whose steps_to_next_obs sets the power of gamma.
        defaults = {"gamma": 0.99, "device": self._default_device}
        return TD0Estimator(value_network=None, **{**defaults, **hyperparams})

    def derive_value_range(self, tensordict: TensorDictBase, *, margin: float = 2.0) -> float:
        """Let the atoms span ``+-margin max|r| / (1 - gamma)`` and return this bound.

        Later rewards may be larger than those seen so far: ``clip_fraction`` tells, and a warning.

        Args:
            tensordict: transitions ``[*B]``, the more the better; only rewards are read.
            margin: room for entropy terms and larger rewards.

        Raises:
            ValueError: without a categorical critic, or if no reward differs from zero.
        """
        gamma = float(self.value_estimator.gamma)
        return self.value_range.derive(self._next_entry(tensordict, "reward"), gamma, margin)

    def critic_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        reward = self._next_entry(tensordict, "reward")
        self.value_range.prepare(reward, self.value_estimator.gamma)
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
            self.value_range.watch(diagnostics["clip_fraction"])
        return self._reduce(distance, tensordict), diagnostics

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
        joint = TensorDict(batch_size=[1 + coming.shape[0], *tensordict.batch_size])
        for key in self.critic_network.in_keys:
            joint.set(key, torch.cat((current[key].unsqueeze(0), coming[key])))
        value, logits = self._evaluate(self.critic_network_params, joint)
        if logits is None:
            return _Values(value[0], None), _Values(value[1:].detach(), None)
        return _Values(value[0], logits[0]), _Values(value[1:].detach(), logits[1:].detach())

    def _over_critics(self, value: Tensor) -> Tensor:
        """Mean or minimum ``[*B, 1]`` over the critics of ``[*B, E, 1]``."""
        return value.amin(-2) if self.critic_reduction == "min" else value.mean(-2)

    def _next_entry(self, tensordict: TensorDictBase, name: str) -> Tensor:
        hint = "; collect transitions with `next`, or rename keys with loss.set_keys()"
        return required(tensordict["next"], getattr(self.tensor_keys, name), hint)

    def _soft_target(
        self, tensordict: TensorDictBase, next_value: Tensor, path: PathSample
    ) -> Tensor:
        reward = self._next_entry(tensordict, "reward")
        terminated = self._next_entry(tensordict, "terminated")
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


def _check_critic(
    critic: nn.Module,
    support: CategoricalSupport | None,
    critic_reduction: str,
    delay_critic: bool,
) -> None:
    if support is not None and critic_reduction == "min":
        raise ValueError(
            "critic_reduction='min' needs scalar critics; for categorical ones use 'mean'."
        )
    tracking = (BatchRenorm, RunningNorm, _BatchNorm)
    if delay_critic and any(isinstance(module, tracking) for module in critic.modules()):
        raise ValueError(
            "delay_critic=True does not go with running statistics (batch normalisation, "
            "RunningNorm), which target updates leave behind; use layer normalisation, or "
            "delay_critic=False."
        )
