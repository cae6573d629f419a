"""The temperature of the maximum-entropy objective: fixed, or learned towards a target entropy."""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffpolicy.errors import ArgumentError
from objectives.bounds import BOUNDS, BoundedCoefficient, bounded_exp


class Temperature(nn.Module, ABC):
    """Base class: calling it gives the temperature as a detached scalar tensor."""

    #: Whether :meth:`loss` has a gradient.
    learned: bool = False

    @abstractmethod
    def forward(self) -> Tensor:
        """The current temperature, without gradient."""

    @abstractmethod
    def loss(self, entropy: Tensor) -> Tensor:
        """Element-wise loss whose gradient adapts the temperature to ``entropy``."""

    @property
    def is_zero(self) -> bool:
        """Whether the temperature is zero for good, so that entropy terms can be left out."""
        return False


class FixedTemperature(Temperature):
    """A constant temperature; as configuration, it is not part of the ``state_dict``.

    Args:
        value: the temperature, not negative.

    Raises:
        ValueError: if ``value`` is negative or not finite.
    """

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"temperature must be a finite number >= 0, got {value}.")
        self._is_zero = value == 0
        self.register_buffer("value", torch.tensor(float(value)), persistent=False)

    def forward(self) -> Tensor:
        """The temperature, a scalar."""
        return self.value

    def loss(self, entropy: Tensor) -> Tensor:
        """Zeros: there is nothing to learn."""
        return torch.zeros_like(entropy)

    @property
    def is_zero(self) -> bool:
        """Whether the value is zero."""
        return self._is_zero


class LearnedTemperature(BoundedCoefficient, Temperature):
    """``T = exp(log_alpha)``, lowered while the entropy is above its target and raised below.

    The loss is ``T stopgrad(H - H_target)`` (arXiv 2512.02019). H is the ``entropy`` that a loss
    reports, summed over the action dimensions. It lacks the constant entropy of the prior (and,
    unless it is measured after squashing, the tanh term): its target is not SAC's ``-dim(A)``.
    Published choices are -4 (DIME), -8 (DiffWPO) and -5 per action dimension.

    The temperature stays within ``bounds``: where the target cannot be reached it would grow or
    fall for ever. Inside the gradient is exact, and from a bound it comes back as soon as the
    entropy is on the other side of its target.

    Args:
        initial: initial temperature, within the bounds.
        target_entropy: ``H_target``, a total over the action dimensions. ``"auto"`` is SAC's
            target for the entropy of the action with the prior's part taken off:
            ``-dim(A) - H(prior)``; the loss fills it in.
        bounds: smallest and largest temperature.

    Raises:
        ArgumentError: ``initial`` is not within the bounds, ``target_entropy`` is not finite, or
            ``bounds`` are not a positive and a greater finite number.
    """

    learned = True
    log_alpha: nn.Parameter

    def __init__(
        self,
        initial: float,
        target_entropy: float | Literal["auto"] = "auto",
        bounds: tuple[float, float] = BOUNDS,
    ) -> None:
        super().__init__("log_alpha", "initial", initial, bounds)
        if isinstance(target_entropy, str):
            if target_entropy != "auto":
                raise ArgumentError("target_entropy", target_entropy, "must be a number or 'auto'.")
            target_entropy = math.nan
        elif not math.isfinite(target_entropy):
            raise ArgumentError("target_entropy", target_entropy, "must be finite.")
        #: ``H_target``; NaN for ``"auto"`` until a loss has filled it in.
        self.target_entropy = target_entropy

    def resolve_target(self, actor: Any) -> None:
        """Fill in ``target_entropy="auto"`` for an actor; leaves a number as it is.

        Raises:
            TypeError: if the actor lacks ``squash`` or ``prior_entropy``.
        """
        if not math.isnan(self.target_entropy):
            return
        missing = [name for name in ("squash", "prior_entropy") if not hasattr(actor, name)]
        if missing:
            raise TypeError(
                f"target_entropy='auto' needs an actor with {' and '.join(missing)}, which "
                f"{type(actor).__name__} lacks; give a number."
            )
        self.target_entropy = -float(actor.squash.action_dim) - float(actor.prior_entropy)

    def loss(self, entropy: Tensor) -> Tensor:
        """``T stopgrad(H - H_target)``, element by element in the shape of ``entropy``."""
        excess = entropy.detach() - self.target_entropy
        return bounded_exp(self.log_alpha, excess.mean(), self.bounds) * excess


def as_temperature(temperature: float | Temperature) -> Temperature:
    """A number as a :class:`FixedTemperature`; a :class:`Temperature` unchanged.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(temperature, Temperature):
        return temperature
    if isinstance(temperature, (int, float)):
        return FixedTemperature(float(temperature))
    raise TypeError(
        "temperature must be a number or a Temperature (FixedTemperature, LearnedTemperature), "
        f"got {type(temperature).__name__}."
    )
