"""What ranks tell each other; every rank must make each of these calls."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffpolicy.networks.ranks import distributed, sum_over_ranks


def reduce(values: Tensor, *, average: bool = False) -> Tensor:
    """Sum or average over the ranks; every rank gets the same result."""
    if not distributed():
        return values
    total = sum_over_ranks(values.detach().clone())
    return total / dist.get_world_size() if average else total


def any_rank(*flags: bool, device: torch.device) -> list[bool]:
    """Which of ``flags`` are true on any rank; ``device`` is where ranks exchange tensors."""
    counts = reduce(torch.tensor(flags, dtype=torch.float32, device=device))
    return [count > 0 for count in counts.tolist()]


def gather(value: Any) -> list[Any]:
    """What every rank gives, in the order of the ranks."""
    if not distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
