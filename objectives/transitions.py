"""Entries of replayed transitions: those that losses read, and the priority they write."""

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors.keys import required


@dataclass
class ReplayKeys:
    """Configurable keys of the losses that learn from replay; others are the actor's.

    ``action`` must be the actor's, and ``done`` is only handed to the value estimator: targets
    bootstrap unless a transition is ``terminated``.
    """

    action: NestedKey = "action"
    state_action_value: NestedKey = "state_action_value"
    state_action_value_logits: NestedKey = "state_action_value_logits"
    reward: NestedKey = "reward"
    done: NestedKey = "done"
    terminated: NestedKey = "terminated"
    priority: NestedKey = "td_error"
    priority_weight: NestedKey = "priority_weight"


def next_entry(tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """The entry ``("next", key)``, or a KeyError that says what would work."""
    hint = "; collect transitions with `next`, or rename keys with loss.set_keys()"
    return required(tensordict["next"], key, hint)


def return_discount(
    estimator: ValueEstimatorBase, tensordict: TensorDictBase, like: Tensor
) -> Tensor:
    """Gamma, a scalar, or its power ``[*B, 1]`` where transitions hold returns of several steps.

    TorchRL's MultiStepTransform writes their number as ``steps_to_next_obs``.
    """
    steps = tensordict.get(estimator.tensor_keys.steps_to_next_obs, None)
    gamma: Tensor = estimator.gamma
    return gamma if steps is None else gamma ** steps.view_as(like)


def reward_of_one_step(
    estimator: ValueEstimatorBase, tensordict: TensorDictBase
) -> tuple[Tensor, Tensor]:
    """Rewards ``[*B, 1]`` of one step, those of several steps shared out evenly, and gamma."""
    keys, gamma = estimator.tensor_keys, estimator.gamma
    reward = next_entry(tensordict, keys.reward)
    steps = tensordict.get(keys.steps_to_next_obs, None)
    return reward if steps is None else mean_reward(reward, steps.view_as(reward), gamma), gamma


def mean_reward(reward: Tensor, steps: Tensor, gamma: Tensor | float) -> Tensor:
    """``r (1 - gamma) / (1 - gamma^n)``: the constant reward that makes a discounted sum.

    Args:
        reward: ``r = sum_{i < n} gamma^i r_i`` ``[*B, 1]``.
        steps: ``n`` of the same shape.
        gamma: discount of a step.
    """
    gamma = torch.as_tensor(gamma, dtype=reward.dtype, device=reward.device)
    weight = torch.where(gamma == 1, steps, (1 - gamma**steps) / (1 - gamma).clamp_min(1e-12))
    return reward / weight


@torch.no_grad()
def write_priority(tensordict: TensorDictBase, key: NestedKey, error: Tensor) -> None:
    """Write ``error`` ``[*B, 1]`` as the priority ``[*B]``, unless the TensorDict is locked."""
    if not tensordict.is_locked:
        tensordict.set(key, error.squeeze(-1))
