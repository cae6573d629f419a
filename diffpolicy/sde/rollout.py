"""Sampling whole chains and evaluating their densities."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffpolicy.sde.likelihood import Gaussian, gaussian_log_prob
from diffpolicy.sde.process import DenoisingProcess

ScoreFunction = Callable[[Tensor, int], Tensor]


class Chain(NamedTuple):
    """A denoising chain and the kernels that produced it.

    Attributes:
        latents: ``x_0 .. x_N`` as ``[*B, N+1, A]``.
        denoising: kernels ``q(. | x_n, s)`` with mean and std ``[*B, N, A]``.
        noising: kernels ``p(. | x_{n+1})`` with mean and std ``[*B, N, A]``.
    """

    latents: Tensor
    denoising: Gaussian
    noising: Gaussian

    @property
    def log_prob(self) -> Tensor:
        """``log q(x_{n+1} | x_n, s)`` per step, ``[*B, N, 1]``."""
        return gaussian_log_prob(self.latents[..., 1:, :], self.denoising)

    @property
    def noising_log_prob(self) -> Tensor:
        """``log p(x_n | x_{n+1})`` per step, ``[*B, N, 1]``."""
        return gaussian_log_prob(self.latents[..., :-1, :], self.noising)

    @property
    def log_ratio(self) -> Tensor:
        """``LR_n = log q - log p`` per step, ``[*B, N, 1]``."""
        return self.log_prob - self.noising_log_prob


def draw_noise(process: DenoisingProcess, batch_size: torch.Size | tuple[int, ...]) -> Tensor:
    """Standard normal noise for one chain per batch element, ``[*B, N+1, A]``."""
    shape = (*batch_size, process.denoising_steps + 1, process.action_dim)
    return torch.randn(shape, dtype=process.prior_std.dtype, device=process.prior_std.device)


def rollout_chain(
    process: DenoisingProcess,
    score: ScoreFunction,
    noise: Tensor,
    *,
    deterministic: bool = False,
) -> Chain:
    """Run the whole denoising chain.

    Gradients flow through the chain, the score function and the step sizes; wrap the call in
    ``torch.no_grad()`` for acting.

    Args:
        process: the denoising process.
        score: maps ``(x_n [*B, A], n)`` to the score ``[*B, A]``.
        noise: standard normal ``[*B, N+1, A]``: index 0 makes ``x_0``, index n+1 the step from
            ``x_n``. A deterministic rollout uses index 0 only.
        deterministic: follow the probability-flow step instead of sampling. The kernels in
            the result are still those of the stochastic process, evaluated along the path.

    Returns:
        The chain with its denoising and noising kernels.

    Raises:
        ValueError: if ``noise`` does not end in ``[N+1, A]``.
    """
    expected = (process.denoising_steps + 1, process.action_dim)
    if tuple(noise.shape[-2:]) != expected:
        raise ValueError(f"noise must have shape [*B, {expected[0]}, {expected[1]}], got {tuple(noise.shape)}.")
    step_sizes = process.step_sizes()
    std = (2 * step_sizes).sqrt()
    latent = noise[..., 0, :] * process.prior_std
    latents, means = [latent], []
    for step in range(process.denoising_steps):
        drift = score(latent, process.network_step(step))
        mean = process.denoising_mean(latent, drift, step_sizes[step])
        if deterministic:
            latent = process.flow_step(latent, drift, step_sizes[step])
        else:
            latent = mean + std[step] * noise[..., step + 1, :]
        means.append(mean)
        latents.append(latent)
    path, mean = torch.stack(latents, -2), torch.stack(means, -2)
    noising = process.noising_kernel(
        path[..., 1:, :], torch.arange(process.denoising_steps, device=path.device)
    )
    return Chain(path, Gaussian(mean, std.expand_as(mean)), noising)
