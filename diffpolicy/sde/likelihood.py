"""Densities of the denoising process: Gaussian kernels, log-ratios, prior and squashing terms.

All functions sum over the last (action) dimension and keep it with size one, so that results
have the ``[*B, 1]`` shape of rewards and values in TorchRL. Shapes that do not match raise.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """A Gaussian with diagonal covariance, given by its mean and standard deviation ``[*B, A]``.

    Examples:
        >>> kernel = Gaussian(torch.zeros(3, 2), torch.ones(3, 2))
        >>> drawn = kernel.sample()
        >>> drawn.shape, kernel.log_prob(drawn).shape
        (torch.Size([3, 2]), torch.Size([3, 1]))
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """``mean + std * noise``, with gradients through mean and std.

        Args:
            noise: standard normal ``[*B, A]`` of the shape of the mean, or ``[*M, *B, A]`` for
                several samples; None draws one.

        Returns:
            In the shape of the noise.

        Raises:
            ValueError: if the noise has another shape.
        """
        if noise is None:
            noise = torch.randn_like(self.mean)
        if noise.shape[-self.mean.ndim :] != self.mean.shape:
            raise ValueError(
                f"noise must have the shape of the mean, {tuple(self.mean.shape)}, "
                f"got {tuple(noise.shape)}."
            )
        return self.mean + self.std * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``[*B, 1]`` of ``value`` ``[*B, A]``, see :func:`gaussian_log_prob`."""
        return gaussian_log_prob(value, self)


def _check_last_dim(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape[-1:] != like.shape[-1:]:
        raise ValueError(
            f"{name} has {value.shape[-1]} action dimensions where {like.shape[-1]} are expected "
            f"(shapes {tuple(value.shape)} and {tuple(like.shape)})."
        )


def gaussian_log_prob(value: Tensor, kernel: Gaussian) -> Tensor:
    """Log density of ``value`` under ``kernel``.

    Args:
        value: ``[*B, A]``.
        kernel: mean and std, broadcastable to ``[*B, A]``.

    Returns:
        ``[*B, 1]``.

    Raises:
        ValueError: if the action dimensions differ.
    """
    _check_last_dim("value", value, kernel.mean)
    residual = (value - kernel.mean) / kernel.std
    log_density = -0.5 * residual.square() - kernel.std.log() - _HALF_LOG_2PI
    return log_density.sum(-1, keepdim=True)


def gaussian_kl(first: Gaussian, second: Gaussian) -> Tensor:
    """Exact ``KL(first || second)`` of two diagonal Gaussians, ``[*B, 1]``.

    Raises:
        ValueError: if the action dimensions differ.
    """
    _check_last_dim("second", second.mean, first.mean)
    variance_ratio = (first.std / second.std).square()
    shift = ((first.mean - second.mean) / second.std).square()
    return 0.5 * (variance_ratio + shift - 1 - variance_ratio.log()).sum(-1, keepdim=True)


def log_ratio(
    latent: Tensor, next_latent: Tensor, denoising: Gaussian, noising: Gaussian
) -> Tensor:
    """``LR_n = log q(x_{n+1} | x_n, s) - log p(x_n | x_{n+1})`` (arXiv 2512.02019).

    Args:
        latent: ``x_n`` ``[*B, A]``.
        next_latent: ``x_{n+1}`` ``[*B, A]``.
        denoising: the kernel ``q``, evaluated at ``x_n``.
        noising: the kernel ``p``, evaluated at ``x_{n+1}``.

    Returns:
        ``[*B, 1]``. Sums over n give the entropy cost of a chain without its prior term.
    """
    return denoising.log_prob(next_latent) - noising.log_prob(latent)


def prior_log_prob(latent: Tensor, prior_std: Tensor) -> Tensor:
    """Log density of ``x_0`` ``[*B, A]`` under ``N(0, prior_std^2)``, ``[*B, 1]``."""
    return Gaussian(torch.zeros_like(latent), prior_std).log_prob(latent)


def tanh_log_det(latent: Tensor) -> Tensor:
    """``log |d tanh(x) / dx|`` summed over the action dimension, finite for any finite ``x``.

    Equals ``sum_i 2 (log 2 - x_i - softplus(-2 x_i))`` (arXiv 2502.02316).

    Args:
        latent: pre-squash action ``[*B, A]``.

    Returns:
        ``[*B, 1]``.
    """
    return (2 * (math.log(2) - latent - softplus(-2 * latent))).sum(-1, keepdim=True)
