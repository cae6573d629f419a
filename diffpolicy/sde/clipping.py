"""Clipping that values can come back from by gradient descent."""

from typing import Any

import torch
from torch import Tensor


def inward_clamp(value: Tensor, limit: float) -> Tensor:
    """``value`` clipped to ``[-limit, limit]``, with a gradient wherever it leads back inside.

    Beyond a limit the gradient of a plain clamp is zero: what has gone there stays, whatever the
    loss says. Here a descent step that would lead further away has no gradient, and one that leads
    back has that of the unclipped value.

    Examples:
        >>> value = torch.tensor(2.0, requires_grad=True)
        >>> for slope in (-1.0, 1.0):
        ...     print(torch.autograd.grad(slope * inward_clamp(value, 1.0), value)[0].item())
        0.0
        1.0
    """
    if not torch.is_grad_enabled():
        return value.clamp(-limit, limit)
    clipped: Tensor = _InwardClamp.apply(value, limit)
    return clipped


class _InwardClamp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, limit: float) -> Tensor:
        return value.clamp(-limit, limit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        value, ctx.limit = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        above, below = value > ctx.limit, value < -ctx.limit
        outwards = (above & (gradient < 0)) | (below & (gradient > 0))
        return torch.where(outwards, 0.0, gradient), None
