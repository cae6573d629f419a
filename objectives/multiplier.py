"""The Lagrange multiplier of a constraint."""

import math

import torch
from torch import Tensor, nn


class LearnedMultiplier(nn.Module):
    """``lambda = exp(log_multiplier)``, raised while a constraint is violated, else lowered.

    The loss is ``-lambda stopgrad(value - bound)`` (arXiv 2512.02019). Calling the module gives
    the multiplier as a detached scalar.

    Args:
        initial: initial multiplier, positive.
        bound: the largest value that the constraint allows.

    Raises:
        ValueError: if ``initial`` or ``bound`` is not positive and finite.
    """

    def __init__(self, initial: float, bound: float) -> None:
        super().__init__()
        for name, value in (("initial multiplier", initial), ("bound", bound)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        self.log_multiplier = nn.Parameter(torch.tensor(math.log(initial)))
        self.bound = bound

    def forward(self) -> Tensor:
        """The multiplier, a scalar without gradient."""
        return self.log_multiplier.detach().exp()

    def loss(self, value: Tensor) -> Tensor:
        """``-lambda stopgrad(value - bound)``, in the shape of ``value``."""
        return -self.log_multiplier.exp() * (value.detach() - self.bound)
