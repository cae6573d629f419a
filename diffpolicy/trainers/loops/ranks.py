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


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on any rank; ``device`` is where ranks exchange tensors."""
    return bool(reduce(torch.tensor(float(flag), device=device)) > 0)


def gather(value: Any) -> list[Any]:
    """What every rank gives, in the order of the ranks."""
    if not distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
