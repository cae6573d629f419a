"""Maps of the last latent into the bounds of the action space."""

import math
from abc import ABC, abstractmethod
from typing import Protocol, Self

import torch
from tensordict import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, TensorSpec

from diffpolicy.sde import tanh_log_det


class ActionMap(nn.Module, ABC):
    """Maps latents ``[*B, A]`` into the bounds ``[low, high]`` of an action space.

    Args:
        low: lower bounds ``[A]``.
        high: upper bounds ``[A]``.

    Raises:
        ValueError: if the bounds are not one-dimensional, finite and ``low < high``.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        low, high = torch.as_tensor(low), torch.as_tensor(high)
        if low.ndim != 1 or low.shape != high.shape:
            raise ValueError(
                "low and high must be one-dimensional and of the same length, "
                f"got shapes {tuple(low.shape)} and {tuple(high.shape)}."
            )
        if not bool((low.isfinite() & high.isfinite() & (low < high)).all()):
            raise ValueError(
                "low and high must be finite with low < high in every action dimension, "
                f"got low={low.tolist()} and high={high.tolist()}."
            )
        dtype = torch.get_default_dtype()
        low, high = low.to(dtype), high.to(dtype)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    @classmethod
    def from_spec(cls, spec: TensorSpec) -> Self:
        """Into the bounds of an action spec ``[A]``, or ``[*agents, A]`` with equal bounds.

        Raises:
            ValueError: for a discrete or unbounded spec, or agents with different bounds.
        """
        return cls(*action_bounds(spec))

    @property
    def action_dim(self) -> int:
        """Number of action dimensions ``A``."""
        return self.low.shape[0]

    @property
    @abstractmethod
    def latent_bounds(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper bounds ``[A]`` of the latents of actions; None if there are none."""

    @abstractmethod
    def forward(self, latent: Tensor) -> Tensor:
        """Map latents ``[*B, A]`` to actions ``[*B, A]``."""

    @abstractmethod
    def inverse(self, action: Tensor) -> Tensor:
        """Latents ``[*B, A]`` that are mapped to actions ``[*B, A]`` in the bounds.

        Raises:
            ValueError: if an action is outside of the bounds by more than rounding; not in
                compiled code.
        """

    @abstractmethod
    def log_det(self, latent: Tensor) -> Tensor:
        """``log |d action / d latent|`` in [-1, 1] units, ``[*B, 1]``."""

    def from_unit(self, unit: Tensor) -> Tensor:
        """Actions in the bounds, from numbers ``[*B, A]`` in [-1, 1]."""
        # The clamp removes the rounding of the affine map, which can leave the closed interval.
        scale, shift = (self.high - self.low) / 2, (self.high + self.low) / 2
        return (unit * scale + shift).clamp(self.low, self.high)

    def moved(self, action: Tensor, change: Tensor) -> Tensor:
        """Actions ``[*B, A]`` plus a change in [-1, 1] units, clipped to the bounds."""
        return (action + change * (self.high - self.low) / 2).clamp(self.low, self.high)

    def to_unit(self, action: Tensor) -> Tensor:
        """Actions mapped to [-1, 1], in double precision; ValueError as of :meth:`inverse`."""
        center, scale = (self.high + self.low) / 2, (self.high - self.low) / 2
        unit = ((action - center) / scale).double()
        # Inside of compiled and exported code nobody can look at the numbers.
        if not torch.compiler.is_compiling() and bool((unit.abs() > 1 + 1e-4).any()):
            raise ValueError(
                f"action must be within {self.low.tolist()} and {self.high.tolist()}, got values "
                f"from {action.min().item():g} to {action.max().item():g}; clip them first."
            )
        return unit.clamp(-1, 1)


class ActionSquash(ActionMap):
    """``tanh``, then an affine map from [-1, 1] to ``[low, high]``, see :class:`ActionMap`.

    Latents of :meth:`inverse` are finite: an action at a bound becomes the smallest latent that
    floating-point numbers squash to that bound, about 9 in single precision.
    ``self(self.inverse(action))`` is ``action`` up to the rounding of tanh.

    Examples:
        >>> squash = ActionSquash(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0]))
        >>> squash(torch.tensor([0.0, 100.0]))
        tensor([0., 1.])
    """

    @property
    def latent_bounds(self) -> None:
        """None: every latent is that of an action."""
        return None

    def forward(self, latent: Tensor) -> Tensor:
        """Map pre-squash actions ``[*B, A]`` to actions ``[*B, A]``."""
        return self.from_unit(latent.tanh())

    def inverse(self, action: Tensor) -> Tensor:
        """The latents that are squashed to ``action``, see :meth:`ActionMap.inverse`."""
        limit = 0.5 * math.log(16 / torch.finfo(action.dtype).eps)
        return self.to_unit(action).atanh().clamp(-limit, limit).to(action.dtype)

    def log_det(self, latent: Tensor) -> Tensor:
        """``log |d tanh(x) / dx|``, see :func:`~diffpolicy.sde.tanh_log_det`."""
        return tanh_log_det(latent)


class ActionClip(ActionMap):
    """Clips to [-1, 1], then an affine map to ``[low, high]``, see :class:`ActionMap`.

    For processes whose latents are actions in [-1, 1], where clipping takes rounding and the noise
    of the last step away.

    Args:
        low: lower bounds ``[A]``.
        high: upper bounds ``[A]``.
        scaled: whether latents are in [-1, 1] units. If not, they are actions as they are, and
            clipped to ``[low, high]``.

    Raises:
        ValueError: see :class:`ActionMap`.

    Examples:
        >>> low, high = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])
        >>> ActionClip(low, high)(torch.tensor([0.5, 100.0]))
        tensor([1., 1.])
        >>> ActionClip(low, high, scaled=False)(torch.tensor([0.5, 100.0]))
        tensor([0.5000, 1.0000])
    """

    def __init__(self, low: Tensor, high: Tensor, *, scaled: bool = True) -> None:
        super().__init__(low, high)
        self.scaled = scaled

    @property
    def latent_bounds(self) -> tuple[Tensor, Tensor]:
        """-1 and 1, or the bounds of actions if latents are not scaled."""
        if self.scaled:
            return -torch.ones_like(self.low), torch.ones_like(self.high)
        return self.low, self.high

    def forward(self, latent: Tensor) -> Tensor:
        """Map latents ``[*B, A]`` to actions ``[*B, A]``."""
        inside = latent.clamp(*self.latent_bounds)
        return self.from_unit(inside) if self.scaled else inside

    def inverse(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1] units, or as they are if not scaled, see :meth:`ActionMap.inverse`."""
        unit = self.to_unit(action).to(action.dtype)
        return unit if self.scaled else action.clamp(*self.latent_bounds)

    def log_det(self, latent: Tensor) -> Tensor:
        """``log |d action / d latent|`` in [-1, 1] units: the same for all latents."""
        of_unit = torch.zeros_like(latent[..., :1])
        return of_unit if self.scaled else of_unit - ((self.high - self.low) / 2).log().sum()


def action_bounds(spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds ``[A]`` of an action spec ``[A]`` or ``[*agents, A]``.

    Raises:
        ValueError: for a discrete or unbounded spec, or agents with different bounds.
    """
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point:
        raise ValueError(
            f"action_spec must be a bounded continuous spec (Bounded), got {type(spec).__name__} "
            f"with dtype {spec.dtype}: diffusion policies need continuous actions with finite "
            "bounds."
        )
    if not spec.shape:
        raise ValueError("action_spec must have shape [A] or [*agents, A], got ().")
    low, high = spec.space.low, spec.space.high
    shown = f"low={low.tolist()} and high={high.tolist()}"
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise ValueError(
            f"action_spec must have finite bounds, got {shown}; "
            "rescale or clip the actions of the environment first."
        )
    low, high = (bound.reshape(-1, spec.shape[-1]) for bound in (low, high))
    if bool(((low != low[0]) | (high != high[0])).any()):
        raise ValueError(
            "action_spec must have the same bounds for all agents, which share one policy, got "
            f"{shown}; rescale the actions of the environment first (torchrl.envs.ActionScaling)."
        )
    return low[0], high[0]


class EnvSpecs(Protocol):
    """What sizes are read from: an environment, or something with its specs."""

    @property
    def full_action_spec_unbatched(self) -> Composite:
        """The specs of all actions."""

    @property
    def observation_spec_unbatched(self) -> Composite:
        """The specs of all observations."""


def env_action_spec(env: EnvSpecs, action_key: NestedKey = "action") -> TensorSpec:
    """The spec of one action of an environment, without batch dimensions.

    Raises:
        ValueError: if ``action_key`` is not one of the environment's actions, or its spec is not
            a bounded continuous one.
    """
    specs = env.full_action_spec_unbatched
    leaves = list(specs.keys(True, True))
    if action_key not in leaves:
        raise ValueError(
            f"action_key={action_key!r} is not an action of the environment, which has "
            f"{sorted(map(str, leaves))}; choose one of them with keys=ActorKeys(action=...) "
            "(action_key=... for TorchRL's Gaussian actors)."
        )
    action_bounds(specs[action_key])
    return specs[action_key]
