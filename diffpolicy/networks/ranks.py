"""Exchanges between the processes that train together.

Every rank must call them, with tensors of the same shape. No gradient flows through them.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    """Whether this process is one of the ranks of a group."""
    return dist.is_available() and dist.is_initialized()


def sum_over_ranks(value: Tensor) -> Tensor:
    """``value`` summed over all ranks, in place; itself if nothing is distributed."""
    if distributed():
        dist.all_reduce(value)
    return value


def max_over_ranks(value: Tensor) -> Tensor:
    """The largest ``value`` of all ranks, in place; itself if nothing is distributed."""
    if distributed():
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def gather_over_ranks(value: Tensor) -> Tensor:
    """``value`` of every rank, ``[ranks, ...]``; of one if nothing is distributed."""
    if not distributed():
        return value.unsqueeze(0)
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.stack(parts)
