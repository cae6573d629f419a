"""Sampling whole chains and evaluating their densities."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffpolicy.sde.likelihood import Gaussian
from diffpolicy.sde.protocol import Process, RolloutMode, check_densities

# Of a latent and of what the process shows the network of a step: its number, or times.
ScoreFunction = Callable[[Tensor, Any], Tensor]


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
        return self.denoising.log_prob(self.latents[..., 1:, :])

    @property
    def noising_log_prob(self) -> Tensor:
        """``log p(x_n | x_{n+1})`` per step, ``[*B, N, 1]``."""
        return self.noising.log_prob(self.latents[..., :-1, :])

    @property
    def log_ratio(self) -> Tensor:
        """``LR_n = log q - log p`` per step, ``[*B, N, 1]``."""
        return self.log_prob - self.noising_log_prob


def sampled_log_ratio(chain: Chain, noise: Tensor) -> Tensor:
    """``sum_n LR_n`` of a chain that was sampled from ``noise``, ``[*B, 1]``.

    Equals ``chain.log_ratio.sum(-2)``. The density of a denoising step is that of its noise, which
    saves computing it from the latents and keeps its gradient free of rounding
    (arXiv 2502.02316)::

        LR_n = |(x_n - m_p) / std_p|^2 / 2 + log std_p - |eps_n|^2 / 2 - log std_q

    Args:
        chain: result of :func:`rollout_chain` in mode ``"sample"``.
        noise: the noise that it was sampled from, ``[*B, N+1, A]``.
    """
    jump = noise[..., 1:, :]
    residual = (chain.latents[..., :-1, :] - chain.noising.mean) / chain.noising.std
    scales = (chain.noising.std / chain.denoising.std).log()
    per_step = 0.5 * (residual.square() - jump.square()) + scales
    return per_step.sum((-2, -1)).unsqueeze(-1)


def checkpointed(score: ScoreFunction) -> ScoreFunction:
    """A score whose activations are computed again in the backward pass instead of kept.

    The score must still have the same parameters when the backward pass runs.
    """

    def recomputed(latent: Tensor, step: int | Tensor) -> Tensor:
        result: Tensor = checkpoint(score, latent, step, use_reentrant=False)
        return result

    return recomputed


def draw_noise(process: Process, batch_size: torch.Size | tuple[int, ...]) -> Tensor:
    """Standard normal noise for one chain per batch element, ``[*B, N+1, A]``."""
    shape = (*batch_size, process.denoising_steps + 1, process.action_dim)
    return torch.randn(shape, dtype=process.prior_std.dtype, device=process.prior_std.device)


def rollout_chain(
    process: Process,
    score: ScoreFunction,
    noise: Tensor,
    *,
    mode: RolloutMode = "sample",
) -> Chain:
    """Run the whole denoising chain and keep it.

    Gradients flow through the chain, the score function and the step sizes; wrap the call in
    ``torch.no_grad()`` for acting.

    With the score ``f`` of step n and ``eta = eta_n`` the next latent of a
    :class:`~diffpolicy.sde.DenoisingProcess` is::

        "sample"     x + eta (-x / nu^2 + f) + sqrt(2 eta) eps
        "mean"       x + eta (-x / nu^2 + f)
        "flow"       x + eta f / 2
        "published"  x + eta (-x / nu^2 + f / 2)

    ``"flow"`` is an Euler step of the probability-flow ODE of the process. The exact reversal of
    the noising SDE ``dx = -x / nu^2 dt + sqrt(2) dw`` has the drift ``x / nu^2 + 2 grad log p``,
    so ``f = 2 (x / nu^2 + grad log p)``; the flow's drift is that of the reversal less one
    ``grad log p``, which is ``x / nu^2 + grad log p = f / 2``. Where ``f`` is that score, the flow
    carries the marginals of the SDE, with an error of first order in ``eta``. ``"published"`` is
    the step of the code released with arXiv 2512.02019: it also contracts ``x``, and its actions
    lie closer to zero than those of the flow.

    Args:
        process: the denoising process.
        score: maps ``(x_n [*B, A], n)`` to the score ``[*B, A]``.
        noise: standard normal ``[*B, N+1, A]``: index 0 makes ``x_0``, index n+1 the step from
            ``x_n``. Only ``"sample"`` reads more than index 0.
        mode: ``"sample"`` draws from the denoising kernels, everything else is a step without
            noise, see below. The kernels in the result are those of the stochastic process in
            every mode, evaluated along the path.

    Returns:
        The chain with its denoising and noising kernels.

    Raises:
        ValueError: if ``noise`` does not end in ``[N+1, A]``, for an unknown mode, or for a process
            without densities.
    """
    check_densities(process)
    path, outputs = _path(process, score, noise, mode)
    every = slice(None)
    denoising = process.denoising_kernel(path[..., :-1, :], torch.stack(outputs, -2), every)
    return Chain(path, denoising, process.noising_kernel(path[..., 1:, :], every))


def rollout_latents(
    process: Process,
    score: ScoreFunction,
    noise: Tensor,
    *,
    mode: RolloutMode = "sample",
) -> Tensor:
    """The latents ``x_0 .. x_N`` ``[*B, N+1, A]`` of a chain, without its kernels.

    Arguments and errors are those of :func:`rollout_chain`.
    """
    path, _ = _path(process, score, noise, mode)
    return path


def rollout_last(
    process: Process,
    score: ScoreFunction,
    noise: Tensor,
    *,
    mode: RolloutMode = "sample",
) -> Tensor:
    """The last latent ``x_N`` ``[*B, A]`` of a chain, without keeping the chain.

    Arguments and errors are those of :func:`rollout_chain`.
    """
    _check_noise(process, noise)
    *_, (_, latent) = _denoise(process, score, noise, mode)
    return latent


def _check_noise(process: Process, noise: Tensor) -> None:
    expected = (process.denoising_steps + 1, process.action_dim)
    if tuple(noise.shape[-2:]) != expected:
        raise ValueError(
            f"noise must have shape [*B, {expected[0]}, {expected[1]}], got {tuple(noise.shape)}."
        )


def _path(
    process: Process, score: ScoreFunction, noise: Tensor, mode: RolloutMode
) -> tuple[Tensor, list[Tensor]]:
    """The latents ``[*B, N+1, A]`` of a chain, and the score at all of them but the last."""
    _check_noise(process, noise)
    latents, scores = [noise[..., 0, :] * process.prior_std], []
    for value, latent in _denoise(process, score, noise, mode):
        scores.append(value)
        latents.append(latent)
    return torch.stack(latents, -2), scores


def _denoise(
    process: Process, score: ScoreFunction, noise: Tensor, mode: RolloutMode
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the score at every latent and the next latent."""
    move = process.moves(noise[..., 1:, :], mode)
    latent = noise[..., 0, :] * process.prior_std
    for step in range(process.denoising_steps):
        value = score(latent, process.network_step(step))
        latent = move(step, latent, value)
        yield value, latent
