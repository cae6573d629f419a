"""Entries of replayed transitions: those that losses read, and the priority they write."""

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors.keys import required


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


@torch.no_grad()
def write_priority(tensordict: TensorDictBase, key: NestedKey, error: Tensor) -> None:
    """Write ``error`` ``[*B, 1]`` as the priority ``[*B]``, unless the TensorDict is locked."""
    if not tensordict.is_locked:
        tensordict.set(key, error.squeeze(-1))
