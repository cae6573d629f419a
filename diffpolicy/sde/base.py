"""The base of the processes: their sizes, and the noise that chains begin with."""

import math

import torch
from torch import Tensor, nn


class ProcessModule(nn.Module):
    """Sizes and prior of a :class:`~diffpolicy.sde.Process`.

    Args:
        action_dim: number of action dimensions ``A``.
        denoising_steps: number of steps that the network is trained with.
        prior_std: standard deviation of ``x_0``.
        has_densities: whether every step has noise, and so a density and an entropy.

    Raises:
        ValueError: for arguments outside their range.
    """

    prior_std: Tensor

    def __init__(
        self, action_dim: int, denoising_steps: int, prior_std: float, *, has_densities: bool
    ) -> None:
        super().__init__()
        if action_dim < 1:
            raise ValueError(f"action_dim must be at least 1, got {action_dim}.")
        if denoising_steps < 1:
            raise ValueError(f"denoising_steps must be at least 1, got {denoising_steps}.")
        check_positive(prior_std=prior_std)
        self.action_dim = action_dim
        self.trained_steps = denoising_steps
        self.has_densities = has_densities
        dtype = torch.get_default_dtype()
        self.register_buffer("prior_std", torch.tensor(prior_std, dtype=dtype))

    def sample_prior(
        self, batch_size: torch.Size | tuple[int, ...], noise: Tensor | None = None
    ) -> Tensor:
        """Draw ``x_0`` of shape ``[*batch_size, A]``, from ``noise`` (standard normal) if given."""
        if noise is None:
            noise = torch.randn(
                (*batch_size, self.action_dim),
                dtype=self.prior_std.dtype,
                device=self.prior_std.device,
            )
        return noise * self.prior_std


def check_positive(**arguments: float) -> None:
    """Raise a ValueError for the first argument that is not positive and finite."""
    for name, value in arguments.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive finite number, got {value}.")


def inverse_softplus(value: float) -> float:
    """The number whose softplus is ``value``."""
    return value + math.log(-math.expm1(-value))
