"""Squashing of the last latent into the bounds of the action space."""

import math

import torch
from tensordict import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec
from torchrl.envs import EnvBase


class ActionSquash(nn.Module):
    """``tanh``, then an affine map from [-1, 1] to ``[low, high]`` per action dimension.

    Args:
        low: lower bounds ``[A]``.
        high: upper bounds ``[A]``.

    Raises:
        ValueError: if the bounds are not one-dimensional, finite and ``low < high``.

    Examples:
        >>> squash = ActionSquash(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0]))
        >>> squash(torch.tensor([0.0, 100.0]))
        tensor([0., 1.])
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
    def from_spec(cls, spec: TensorSpec) -> "ActionSquash":
        """Squash into the bounds of an action spec ``[A]``.

        Raises:
            ValueError: for a discrete, unbounded or not one-dimensional spec.
        """
        check_action_spec(spec)
        return cls(spec.space.low, spec.space.high)

    @property
    def action_dim(self) -> int:
        """Number of action dimensions ``A``."""
        return self.low.shape[0]

    def forward(self, latent: Tensor) -> Tensor:
        """Map pre-squash actions ``[*B, A]`` to actions ``[*B, A]``."""
        # The clamp removes the rounding of the affine map, which can leave the closed interval.
        scale, shift = (self.high - self.low) / 2, (self.high + self.low) / 2
        return (latent.tanh() * scale + shift).clamp(self.low, self.high)

    def inverse(self, action: Tensor) -> Tensor:
        """The latents ``[*B, A]`` that are squashed to actions ``[*B, A]`` in the bounds.

        Latents are finite: an action at a bound becomes the smallest latent that floating-point
        numbers squash to that bound, about 9 in single precision. ``self(self.inverse(action))``
        is ``action`` up to the rounding of tanh.

        Raises:
            ValueError: if an action is outside of the bounds by more than rounding.
        """
        center, scale = (self.high + self.low) / 2, (self.high - self.low) / 2
        unit = ((action - center) / scale).double()
        if bool((unit.abs() > 1 + 1e-4).any()):
            raise ValueError(
                f"action must be within {self.low.tolist()} and {self.high.tolist()}, got values "
                f"from {action.min().item():g} to {action.max().item():g}; clip them first."
            )
        limit = 0.5 * math.log(16 / torch.finfo(action.dtype).eps)
        return unit.clamp(-1, 1).atanh().clamp(-limit, limit).to(action.dtype)


def check_action_spec(spec: TensorSpec) -> None:
    """Raise a ValueError unless ``spec`` is a bounded continuous vector."""
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point:
        raise ValueError(
            f"action_spec must be a bounded continuous spec (Bounded), got {type(spec).__name__} "
            f"with dtype {spec.dtype}: diffusion policies need continuous actions with finite "
            "bounds."
        )
    if len(spec.shape) != 1:
        raise ValueError(f"action_spec must have shape [A], got {tuple(spec.shape)}.")
    if not bool((spec.space.low.isfinite() & spec.space.high.isfinite()).all()):
        raise ValueError(
            "action_spec must have finite bounds, got "
            f"low={spec.space.low.tolist()} and high={spec.space.high.tolist()}; "
            "rescale or clip the actions of the environment first."
        )


def env_action_spec(env: EnvBase, action_key: NestedKey = "action") -> TensorSpec:
    """The spec of one action of an environment, without batch dimensions."""
    spec = env.full_action_spec_unbatched[action_key]
    check_action_spec(spec)
    return spec
