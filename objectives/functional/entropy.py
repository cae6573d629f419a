"""Entropy terms of denoising chains: element-wise results.

Paper letters: LR log-ratio, T temperature, n denoising step, N their number.
Per-row tensors have shape ``[*B, 1]``; shapes that do not match raise instead of broadcasting.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from objectives.checks import check_same_shape


def entropy_bound(running_cost: Tensor, terminal_cost: Tensor) -> Tensor:
    """``-(run + term) <= H(pi(. | s))``, the bound of DIME (arXiv 2502.02316), ``[*B, 1]``.

    Args:
        running_cost: ``run = sum_n LR_n - log |d tanh(x_N)|`` ``[*B, 1]``.
        terminal_cost: ``term = log p(x_0)`` ``[*B, 1]``.
    """
    check_same_shape(running_cost=running_cost, terminal_cost=terminal_cost)
    return -(running_cost + terminal_cost)


class DiscountedCost(NamedTuple):
    """Entropy costs of several steps, and the discount of what comes after, both ``[*B, 1]``."""

    cost: Tensor
    weight: Tensor


def discounted_cost(
    costs: Sequence[Tensor], taken: Sequence[Tensor], discount: Tensor
) -> DiscountedCost:
    """``sum_k discount^k c_k`` over the steps that were taken, and ``discount^(their number - 1)``.

    Args:
        costs: ``c_k`` of consecutive steps of a chain, each ``[*B, 1]``.
        taken: whether each step was taken, boolean ``[*B, 1]``; the first one always was.
        discount: of a step inside of a chain, a scalar.
    """
    total, weight = costs[0], torch.ones_like(costs[0])
    for cost, moved in zip(costs[1:], taken[1:], strict=True):
        check_same_shape(first=total, cost=cost, taken=moved)
        weight = torch.where(moved, discount * weight, weight)
        total = total + torch.where(moved, weight * cost, 0.0)
    return DiscountedCost(total, weight)
