"""Computing in float32 where inputs of half precision would lose too much."""

import torch
from torch import Tensor


def is_half(value: Tensor) -> bool:
    """Whether ``value`` has one of the two types of half precision."""
    return value.dtype in (torch.float16, torch.bfloat16)


def at_least_float32(value: Tensor) -> Tensor:
    """``value``, in float32 if it has half precision."""
    return value.float() if is_half(value) else value
