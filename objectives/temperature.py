"""The temperature of the maximum-entropy objective: fixed, or learned towards a target entropy."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


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


class LearnedTemperature(Temperature):
    """``T = exp(log_alpha)``, lowered while the entropy is above its target and raised below.

    The loss is ``T stopgrad(H - H_target)`` (arXiv 2512.02019). For a denoising chain H is
    ``-sum_n LR_n``, which lacks the constant entropy of the prior and the tanh term: its target is
    not SAC's ``-dim(A)``. Published choices are -8 (DiffWPO) and -5 per action dimension.

    Args:
        initial: initial temperature, positive.
        target_entropy: ``H_target``.

    Raises:
        ValueError: if ``initial`` is not positive or ``target_entropy`` not finite.
    """

    learned = True

    def __init__(self, initial: float, target_entropy: float) -> None:
        super().__init__()
        if not (math.isfinite(initial) and initial > 0):
            raise ValueError(f"initial temperature must be positive and finite, got {initial}.")
        if not math.isfinite(target_entropy):
            raise ValueError(f"target_entropy must be finite, got {target_entropy}.")
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))
        self.target_entropy = target_entropy

    def forward(self) -> Tensor:
        """The temperature, a scalar without gradient."""
        return self.log_alpha.detach().exp()

    def loss(self, entropy: Tensor) -> Tensor:
        """``T stopgrad(H - H_target)``, element by element in the shape of ``entropy``."""
        return self.log_alpha.exp() * (entropy.detach() - self.target_entropy)


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
