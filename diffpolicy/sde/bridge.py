"""Noised chains of which both ends are given: an action, and a draw of the prior."""

import torch
from torch import Tensor

from diffpolicy.sde.protocol import NoiseLevel, accumulated_noise


def bridge_levels(contraction: Tensor, variance: Tensor, prior_std: Tensor) -> NoiseLevel:
    """Levels ``[N, A]`` of noised chains from ``x_N`` that reach a draw of the prior in ``x_0``.

    With ``x_0 = k_n x_n + sqrt(t_n) z`` under the noising steps that are left, and ``g_n = k_n
    std_n^2 / (k_n^2 std_n^2 + t_n)``, the chain given both ends, of which ``x_0`` is drawn from the
    prior whatever ``x_N`` is, has::

        signal_n (1 - g_n k_n),   std_n^2 (1 - g_n k_n) + g_n^2 prior_std^2

    Where the noising forgets ``x_N``, that is ``signal_n`` and ``std_n`` itself.

    Args:
        contraction: ``c`` of the noising steps ``x_n = c_n x_{n+1} + sqrt(v_n) z``, ``[N, A]``.
        variance: ``v`` ``[N, A]``.
        prior_std: of ``x_0``.
    """
    level = accumulated_noise(contraction, variance)
    ones = torch.ones_like(contraction[:1])
    kept = torch.cat((ones, contraction[:-1].cumprod(0)))
    added = torch.cat((0 * ones, (kept.square() * variance)[:-1].cumsum(0)))
    spread = level.std.square()
    gain = kept * spread / (kept.square() * spread + added)
    left = 1 - gain * kept
    return NoiseLevel(level.signal * left, (spread * left + (gain * prior_std).square()).sqrt())


def bridge_mean(
    contraction: Tensor, variance: Tensor, latent: Tensor, clean: Tensor, step: Tensor
) -> Tensor:
    """Mean ``[*B, A]`` of ``x_{n+1}`` given ``x_n`` and ``x_N``, whatever ``x_0`` is.

    With the levels of the noising::

        signal_{n+1} x_N + c_n std_{n+1}^2 / std_n^2 (x_n - signal_n x_N)

    Args:
        contraction: ``c`` of the noising steps ``x_n = c_n x_{n+1} + sqrt(v_n) z``, ``[N, A]``.
        variance: ``v`` ``[N, A]``.
        latent: ``x_n`` ``[*B, A]``.
        clean: ``x_N`` ``[*B, A]``.
        step: ``n``, integer tensor ``[*B]``.
    """
    signal, std = accumulated_noise(contraction, variance)
    after = torch.cat((signal[1:], torch.ones_like(signal[:1])))
    left = torch.cat((std[1:], torch.zeros_like(std[:1])))
    share = contraction * (left / std).square()
    return after[step] * clean + share[step] * (latent - signal[step] * clean)
