"""The Lagrange multiplier of a constraint."""

import math

from torch import Tensor, nn

from diffpolicy.errors import ArgumentError
from objectives.bounds import BOUNDS, BoundedCoefficient, bounded_exp


class LearnedMultiplier(BoundedCoefficient):
    """``lambda = exp(log_multiplier)``, raised while a constraint is violated, else lowered.

    The loss is ``-lambda stopgrad(value - bound)`` (arXiv 2512.02019). The multiplier stays within
    ``bounds``, also where the constraint cannot be met or never matters.

    Args:
        initial: initial multiplier, within the bounds.
        bound: the largest value that the constraint allows.
        bounds: smallest and largest multiplier.

    Raises:
        ArgumentError: ``initial`` (named ``initial_multiplier``) is not within the bounds,
            ``bound`` is not positive and finite, or ``bounds`` are not a positive and a greater
            finite number.
    """

    log_multiplier: nn.Parameter

    def __init__(self, initial: float, bound: float, bounds: tuple[float, float] = BOUNDS) -> None:
        super().__init__("log_multiplier", "initial_multiplier", initial, bounds)
        if not (math.isfinite(bound) and bound > 0):
            raise ArgumentError("bound", bound, "must be positive and finite.")
        self.bound = bound

    def loss(self, value: Tensor) -> Tensor:
        """``-lambda stopgrad(value - bound)``, in the shape of ``value``."""
        slack = self.bound - value.detach()
        return bounded_exp(self.log_multiplier, slack.mean(), self.bounds) * slack
