"""Surrogates of the policy: element-wise results, the caller reduces.

Paper letters: T temperature, LR log-ratio, A advantage, rho likelihood ratio, q and p kernels.
Per-row tensors have shape ``[*B, 1]``; shapes that do not match raise instead of broadcasting.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffpolicy.sde import Gaussian, gaussian_kl
from objectives.checks import check_same_shape

AdvantageNormalization = Literal["center", "standardize"]


def refreshed_advantage(
    advantage: Tensor, old_log_ratio: Tensor, log_ratio: Tensor, temperature: Tensor
) -> Tensor:
    """``A~ = stopgrad(A_n + T LR_old - T LR)``: the row's own entropy term with current weights.

    All ``[*B, 1]`` (arXiv 2512.02019, DiffPPO); the temperature is a scalar.
    """
    check_same_shape(advantage=advantage, old_log_ratio=old_log_ratio, log_ratio=log_ratio)
    return (advantage + temperature * (old_log_ratio - log_ratio)).detach()


class NormalizedAdvantage(NamedTuple):
    """An advantage and the scale it was divided by."""

    advantage: Tensor
    scale: Tensor


def normalized_advantage(
    advantage: Tensor,
    mode: AdvantageNormalization | None,
    valid: Tensor | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> NormalizedAdvantage:
    """Centre or standardise advantages ``[*B, 1]`` over the valid rows.

    Args:
        advantage: ``[*B, 1]``.
        mode: ``"center"`` subtracts the mean, ``"standardize"`` also divides by the std, None
            changes nothing.
        valid: boolean ``[*B, 1]``; None counts every row.
        sum_over_ranks: sums a tensor over all ranks, where a batch is spread over several; None
            takes the rows as they are.
    """
    total_of = sum_over_ranks or _as_it_is
    one = advantage.new_ones(())
    if mode is None:
        return NormalizedAdvantage(advantage, one)
    counted = advantage.new_ones(advantage.shape) if valid is None else valid.to(advantage)
    known = advantage if valid is None else torch.where(valid, advantage, 0.0)
    number, total = total_of(torch.stack((counted.sum(), known.sum())))
    centered = advantage - total / number.clamp_min(1)
    if mode == "center":
        return NormalizedAdvantage(centered, one)
    squares = (counted * torch.where(counted > 0, centered, 0.0).square()).sum()
    variance = total_of(squares) / (number - 1).clamp_min(1)
    scale = variance.sqrt().clamp_min(1e-6)
    return NormalizedAdvantage(centered / scale, scale)


def _as_it_is(value: Tensor) -> Tensor:
    return value


class ClippedSurrogate(NamedTuple):
    """PPO's clipped surrogate loss and where its gradient is alive, both ``[*B, 1]``."""

    loss: Tensor
    alive: Tensor


def clipped_surrogate(
    log_weight: Tensor, advantage: Tensor, clip_epsilon: Tensor
) -> ClippedSurrogate:
    """``-min(rho A, clip(rho, 1 - eps, 1 + eps) A)`` with ``rho = exp(log_weight)``.

    Args:
        log_weight: ``log q - log q_old`` of single denoising steps ``[*B, 1]``.
        advantage: ``[*B, 1]``.
        clip_epsilon: eps.
    """
    check_same_shape(log_weight=log_weight, advantage=advantage)
    ratio = log_weight.exp()
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    gain, clipped_gain = ratio * advantage, clipped * advantage
    alive = (clipped == ratio) | (gain < clipped_gain)
    return ClippedSurrogate(-torch.minimum(gain, clipped_gain), alive.detach())


def noising_surrogate(
    log_weight: Tensor, alive: Tensor, noising_log_prob: Tensor, temperature: Tensor
) -> Tensor:
    """``-stopgrad(rho) T log p(x_n | x_{n+1})`` where the clipped gradient is alive, else 0.

    Carries the policy gradient's dependence on a learned noising kernel (arXiv 2512.02019); all
    ``[*B, 1]``. Rows without gradient keep their value 0.
    """
    check_same_shape(log_weight=log_weight, alive=alive, noising_log_prob=noising_log_prob)
    weight = torch.where(alive, log_weight.detach().exp(), 0.0)
    return -weight * temperature * noising_log_prob


def effective_sample_size(log_weight: Tensor, valid: Tensor | None = None) -> Tensor:
    """``(sum rho)^2 / (M sum rho^2)`` in (0, 1] for the M valid rows of ``log_weight`` ``[*B, 1]``.

    Args:
        log_weight: ``log q - log q_old`` ``[*B, 1]``.
        valid: boolean ``[*B, 1]``; None counts every row.
    """
    number: Tensor | int = log_weight.numel()
    if valid is not None:
        log_weight = torch.where(valid, log_weight, -torch.inf)
        number = valid.sum().clamp_min(1)
    flat = log_weight.flatten()
    return (2 * flat.logsumexp(0) - (2 * flat).logsumexp(0)).exp() / number


class RatioStatistics(NamedTuple):
    """How far ``rho`` is from 1: of rows ``[*B, 1]``, and of the whole batch (scalars).

    Attributes:
        divergence: ``rho - 1 - log rho``, whose mean estimates the KL divergence.
        outside: 1 where ``rho`` is outside of the clip range, else 0.
        ess: effective sample size, see :func:`effective_sample_size`.
        largest: largest ``rho``.
    """

    divergence: Tensor
    outside: Tensor
    ess: Tensor
    largest: Tensor


def ratio_statistics(
    log_weight: Tensor, clip_epsilon: Tensor, valid: Tensor | None = None
) -> RatioStatistics:
    """Statistics of likelihood ratios ``rho = exp(log_weight)``.

    Args:
        log_weight: ``log q - log q_old`` ``[*B, 1]``.
        clip_epsilon: half width of the clip range.
        valid: boolean ``[*B, 1]``; None counts every row.
    """
    ratio = log_weight.exp()
    counted = ratio if valid is None else torch.where(valid, ratio, 0.0)
    return RatioStatistics(
        ratio - 1 - log_weight,
        ((ratio - 1).abs() > clip_epsilon).to(ratio),
        effective_sample_size(log_weight, valid),
        counted.max(),
    )


def scaled_gradient(value: Tensor, factor: Tensor) -> Tensor:
    """``value``, whose gradient is multiplied by ``factor`` on its way back."""
    constant = value.detach()
    return constant + factor.detach() * (value - constant)


def wasserstein_surrogate(
    log_ratio_gradient: Tensor, value_gradient: Tensor, temperature: Tensor
) -> Tensor:
    """``sum_d stopgrad(T gl - gq) gl``, whose gradient is that of ``(T/2) ||gl - gq / T||^2``.

    Wasserstein policy optimisation (arXiv 2505.00663) on denoising kernels (arXiv 2512.02019).

    Args:
        log_ratio_gradient: ``gl``, the gradient of ``LR_n`` with respect to the next latent at a
            sample without gradient ``[*B, A]``; its own dependence on the policy is kept.
        value_gradient: ``gq``, the gradient of ``Q_n`` at the same sample ``[*B, A]``.
        temperature: T, a scalar.

    Returns:
        ``[*B, 1]``.
    """
    check_same_shape(log_ratio_gradient=log_ratio_gradient, value_gradient=value_gradient)
    difference = (temperature * log_ratio_gradient - value_gradient).detach()
    return (difference * log_ratio_gradient).sum(-1, keepdim=True)


def kernel_divergence(
    behaviour: Gaussian, current: Gaussian, noise: Tensor | None = None
) -> Tensor:
    """``KL(behaviour || current)`` of Gaussian kernels ``[*B, 1]``.

    Args:
        behaviour: mean and std ``[*B, A]``.
        current: mean and std ``[*B, A]``.
        noise: standard normal ``[M, *B, A]`` of samples from the behaviour to estimate it with;
            None is exact.
    """
    if noise is None:
        return gaussian_kl(behaviour, current)
    drawn = behaviour.sample(noise)
    return (behaviour.log_prob(drawn) - current.log_prob(drawn)).mean(0)
