"""Schedules of step sizes, and of the noise levels of the variance-preserving process.

A step-size schedule is the factor ``w_n`` that multiplies the step size at denoising step n: it
maps a number of steps ``N`` to a tensor ``[N]``; index 0 is the noise end of the chain and the
factors never increase towards the action end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_COSINE_FLOOR = 1e-3
_COSINE_OFFSET = 8e-3
_LINEAR_FLOOR = 0.17

Schedule = Callable[[int], Tensor]


def _noise_level(denoising_steps: int) -> Tensor:
    """``t_n = (N - n) / N`` for n = 0..N-1, in float64."""
    steps = torch.arange(denoising_steps, dtype=torch.float64)
    return (denoising_steps - steps) / denoising_steps


def constant(denoising_steps: int) -> Tensor:
    """``w_n = 1``."""
    return torch.ones(denoising_steps, dtype=torch.float64)


def linear(denoising_steps: int) -> Tensor:
    """``w_n = (1 - t_n) 0.17 + t_n`` with ``t_n = (N - n) / N`` (arXiv 2512.02019)."""
    level = _noise_level(denoising_steps)
    return (1 - level) * _LINEAR_FLOOR + level


def cosine(denoising_steps: int) -> Tensor:
    """``w_n = (1 - m) cos^2(pi/2 (1 + c - t_n) / (1 + c)) + m`` (arXiv 2502.02316).

    ``m = 0.001``, ``c = 0.008`` and ``t_n = (N - n) / N``.
    """
    level = _noise_level(denoising_steps)
    angle = 0.5 * math.pi * (1 + _COSINE_OFFSET - level) / (1 + _COSINE_OFFSET)
    return (1 - _COSINE_FLOOR) * torch.cos(angle) ** 2 + _COSINE_FLOOR


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine, "linear": linear}


def schedule_factors(schedule: str | Schedule, denoising_steps: int) -> Tensor:
    """Evaluate a schedule by name or as a callable.

    Args:
        schedule: a key of :data:`SCHEDULES` or a callable from ``N`` to a tensor ``[N]``.
        denoising_steps: number of denoising steps ``N``, at least 1.

    Returns:
        Factors ``w`` of shape ``[N]`` in float64.

    Raises:
        ValueError: for an unknown name, ``N < 1``, or factors that are not ``[N]``, positive and
            finite.

    Examples:
        >>> schedule_factors("linear", 2)
        tensor([1.0000, 0.5850], dtype=torch.float64)
    """
    if denoising_steps < 1:
        raise ValueError(f"denoising_steps must be at least 1, got {denoising_steps}.")
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(
                f"schedule must be one of {sorted(SCHEDULES)} or a callable, got {schedule!r}."
            )
        schedule = SCHEDULES[schedule]
    factors = torch.as_tensor(schedule(denoising_steps), dtype=torch.float64)
    if factors.shape != (denoising_steps,):
        raise ValueError(
            f"schedule must return a tensor of shape ({denoising_steps},), "
            f"got {tuple(factors.shape)}."
        )
    if not bool((factors.isfinite() & (factors > 0)).all()):
        raise ValueError(f"schedule must return positive finite factors, got {factors.tolist()}.")
    return factors


def cosine_levels(steps: int) -> Tensor:
    """``abar_t = cos^2(pi/2 (t/T + .008) / 1.008)``, betas at most .999 (arXiv 2102.09672)."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos(0.5 * math.pi * (time + 0.008) / 1.008).square()
    return (1 - (1 - level[1:] / level[:-1]).clamp(max=0.999)).cumprod(0)


def vp_levels(steps: int) -> Tensor:
    """``alpha_t = exp(-b_min/T - (b_max - b_min)(2t - 1) / (2 T^2))`` with b from .1 to 10."""
    time = torch.arange(1, steps + 1, dtype=torch.float64)
    return torch.exp(-0.1 / steps - 9.9 * (2 * time - 1) / (2 * steps**2)).cumprod(0)


def linear_levels(steps: int) -> Tensor:
    """``beta_t`` from ``.8e-4`` to ``.8`` in even steps, as with the code of arXiv 2502.00361."""
    beta = 0.8 * torch.linspace(1e-4, 0.999, steps, dtype=torch.float64)
    return (1 - beta).cumprod(0)


#: ``abar_1 .. abar_T`` ``[T]`` in float64, from the action's end of the chain to the noise.
NOISE_SCHEDULES: dict[str, Schedule] = {
    "cosine": cosine_levels,
    "linear": linear_levels,
    "vp": vp_levels,
}


@dataclass(frozen=True)
class LinearBetas:
    """Levels of ``beta_t`` from ``start`` to ``end`` in even steps, as DDPM has them.

    A schedule for :class:`~diffpolicy.sde.VariancePreservingProcess` with ends of one's own; those
    of arXiv 2006.11239 are the defaults, made for 1000 steps.

    Attributes:
        start: of the step next to the action.
        end: of the step next to the noise.

    Examples:
        >>> LinearBetas(0.1, 0.5)(2)
        tensor([0.9000, 0.4500], dtype=torch.float64)
    """

    start: float = 1e-4
    end: float = 0.02

    def __call__(self, steps: int) -> Tensor:
        """``abar_1 .. abar_T`` ``[T]`` in float64."""
        beta = torch.linspace(self.start, self.end, steps, dtype=torch.float64)
        return (1 - beta).cumprod(0)


def noise_levels(schedule: str | Schedule, steps: int) -> Tensor:
    """``abar_1 .. abar_T`` of a schedule by name or as a callable.

    Args:
        schedule: a key of :data:`NOISE_SCHEDULES` or a callable from ``T`` to a tensor ``[T]``.
        steps: number of steps ``T``.

    Returns:
        Levels ``[T]`` in float64.

    Raises:
        ValueError: for an unknown name, or levels that are not ``[T]``, between 0 and 1, and
            falling.
    """
    if isinstance(schedule, str):
        if schedule not in NOISE_SCHEDULES:
            raise ValueError(
                f"schedule must be one of {list(NOISE_SCHEDULES)} or a callable, got {schedule!r}."
            )
        schedule = NOISE_SCHEDULES[schedule]
    level = torch.as_tensor(schedule(steps), dtype=torch.float64)
    before = torch.cat((torch.ones(1, dtype=torch.float64), level[:-1]))
    if level.shape != (steps,) or not bool(((level > 0) & (level < before)).all()):
        raise ValueError(
            f"schedule must return {steps} levels that fall from below 1 to above 0, got "
            f"{level.tolist()}."
        )
    return level
