"""Coefficients that are learned as logarithms, and stay within bounds."""

import math

import torch
from torch import Tensor, nn

from diffpolicy.errors import ArgumentError

BOUNDS = (1e-6, 1e4)
"""The smallest and the largest value of a learned temperature or multiplier."""


def bounded_exp(log_value: Tensor, slope: Tensor, bounds: tuple[float, float]) -> Tensor:
    """``exp(log_value)`` within bounds, with a gradient wherever it leads back inside.

    Within the bounds this is the exponential with its exact gradient. Beyond, it is the bound, and
    a descent step that would lead further away has no gradient, while one that leads back has that
    of the bound: an optimiser that has overshot can return.

    Args:
        log_value: scalar.
        slope: derivative of the loss with respect to the value, scalar, without gradient.
        bounds: smallest and largest value, positive.

    Returns:
        The value, scalar; NaN if ``log_value`` is NaN or infinite.

    Examples:
        >>> log_value = torch.tensor(3.0, requires_grad=True)
        >>> for slope in (-1.0, 1.0):
        ...     value = bounded_exp(log_value, torch.tensor(slope), (0.1, 10.0))
        ...     print(round(value.item(), 4), bool(torch.autograd.grad(value, log_value)[0]))
        10.0 False
        10.0 True
    """
    low, high = map(math.log, bounds)
    now = log_value.detach()
    outwards = ((now >= high) & (slope < 0)) | ((now <= low) & (slope > 0))
    moving = torch.where(outwards, 0.0, 1.0).to(log_value.dtype)
    return (_inside(now, bounds) + moving * (log_value - now)).exp()


def _inside(log_value: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The nearest value in the bounds, in logarithms; NaN stays, and infinity becomes, NaN."""
    low, high = map(math.log, bounds)
    return torch.where(log_value.isfinite(), log_value.clamp(low, high), math.nan)


class BoundedCoefficient(nn.Module):
    """``exp(parameter)`` within bounds; calling it gives the value as a detached scalar.

    Args:
        name: of the parameter.
        argument: what errors call the initial value.
        initial: initial value, within the bounds.
        bounds: smallest and largest value.

    Raises:
        ArgumentError: ``bounds`` are not a positive and a greater finite number, or ``initial`` is
            not within them.

    Attributes:
        bounds: smallest and largest value.
    """

    def __init__(
        self, name: str, argument: str, initial: float, bounds: tuple[float, float]
    ) -> None:
        super().__init__()
        low, high = bounds
        if not 0 < low < high < math.inf:
            raise ArgumentError("bounds", bounds, "must be a positive and a greater finite number.")
        if not low <= initial <= high:
            raise ArgumentError(argument, initial, f"must be between {low:g} and {high:g}.")
        self.register_parameter(name, nn.Parameter(torch.tensor(math.log(initial))))
        self.bounds = (low, high)
        self._name = name

    def forward(self) -> Tensor:
        """The value, a scalar without gradient."""
        return _inside(self._log_value().detach(), self.bounds).exp()

    def at_bound(self) -> int:
        """1 at the largest value, -1 at the smallest one, 0 between them."""
        log_value, (low, high) = float(self._log_value().detach()), map(math.log, self.bounds)
        # In the precision of the parameter.
        close = 1e-6
        return int(log_value >= high - close) - int(log_value <= low + close)

    def _log_value(self) -> Tensor:
        return self.get_parameter(self._name)
