"""The critics of soft actor-critic methods with diffusion policies."""

from typing import ClassVar, Literal

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import PathActor, PathSample
from diffpolicy.networks import CategoricalSupport
from objectives import distributional as dist
from objectives import functional as fn
from objectives.chain_loss import find_submodule
from objectives.q_loss import CriticReduction, QLoss
from objectives.temperature import Temperature
from objectives.value_range import ValueRange


class SoftQLoss(QLoss):
    """Base of off-policy losses: critics trained towards soft Q targets.

    Subclasses add the losses of actor and temperature. Arguments and keys are those of
    :class:`~objectives.DIMELoss`.
    """

    _actor_protocol = PathActor
    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({"critic_entropy_coeff"})

    critic_entropy_coeff: Tensor

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: TensorDictModule,
        *,
        temperature: float | Temperature,
        value_range: tuple[float, float] | Literal["auto"] | None = None,
        delay_critic: bool = False,
        critic_reduction: CriticReduction = "mean",
        loss_critic_type: fn.ValueLoss = "l2",
        critic_entropy_coeff: float = 0.005,
        num_next_actions: int = 1,
        checkpoint_chain: bool = False,
        separate_losses: bool = False,
        reduction: str = "mean",
    ) -> None:
        support = find_submodule(critic_network, CategoricalSupport)
        if support is not None and critic_reduction == "min":
            raise ValueError(
                "critic_reduction='min' needs scalar critics; for categorical ones use 'mean'."
            )
        super().__init__(
            actor_network,
            critic_network,
            temperature=temperature,
            categorical=support is not None,
            delay_critic=delay_critic,
            critic_reduction=critic_reduction,
            loss_critic_type=loss_critic_type,
            separate_losses=separate_losses,
            reduction=reduction,
        )
        if num_next_actions < 1:
            raise ValueError(f"num_next_actions must be at least 1, got {num_next_actions}.")
        self.value_range = ValueRange(support, value_range)
        self.num_next_actions = num_next_actions
        self.checkpoint_chain = checkpoint_chain
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
        current, coming = self._current_and_next(
            self._critic_inputs(tensordict, tensordict[self.chain_keys.action]),
            self._critic_inputs(following, path.action),
        )
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
            diagnostics |= self._value_diagnostics(current.value, target)
            self._write_priority(tensordict, diagnostics["td_error"])
            diagnostics = {k: self._reduce(v, tensordict, "mean") for k, v in diagnostics.items()}
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

    def _soft_target(
        self, tensordict: TensorDictBase, next_value: Tensor, path: PathSample
    ) -> Tensor:
        reward = self._next_entry(tensordict, "reward")
        terminated = self._next_entry(tensordict, "terminated")
        cost = path.running_cost + path.terminal_cost
        return dist.soft_target(
            next_value,
            reward.expand_as(cost),
            terminated.expand_as(cost),
            cost,
            discount=self._discount(tensordict, reward),
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
        distance, entropy = dist.categorical_loss(logits, target, self.critic_entropy_coeff)
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
