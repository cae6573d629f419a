"""Sums over the processes that train together."""

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(value: Tensor) -> Tensor:
    """``value`` summed over all ranks, in place; itself if nothing is distributed.

    Every rank must call it, with the same shape. No gradient flows through it.
    """
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value
