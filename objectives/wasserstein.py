"""The algebra of DiffWPO: Wasserstein policy gradients and lambda-returns of Q values.

Paper letters: T temperature, LR log-ratio, G return, n denoising step. Per-row tensors have shape
``[*B, 1]``; shapes that do not match raise instead of broadcasting.
"""

import torch
from torch import Tensor

from diffpolicy.sde import Gaussian, gaussian_kl, gaussian_log_prob
from objectives.functional import DiscountMode, check_same_shape, denoising_gae, step_discount


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


def kernel_divergence(behaviour: Gaussian, current: Gaussian, samples: int | None) -> Tensor:
    """``KL(behaviour || current)`` of Gaussian kernels ``[*B, 1]``.

    Args:
        behaviour: mean and std ``[*B, A]``.
        current: mean and std ``[*B, A]``.
        samples: number of samples from the behaviour to estimate it with; None is exact.
    """
    if samples is None:
        return gaussian_kl(behaviour, current)
    mean = behaviour.mean.expand(samples, *behaviour.mean.shape)
    drawn = mean + behaviour.std * torch.randn_like(mean)
    return (gaussian_log_prob(drawn, behaviour) - gaussian_log_prob(drawn, current)).mean(0)


def denoising_q_returns(
    value: Tensor,
    next_value: Tensor,
    next_log_ratio: Tensor,
    reward: Tensor,
    log_ratio: Tensor,
    done: Tensor,
    terminated: Tensor,
    *,
    temperature: Tensor | float,
    gamma: Tensor | float,
    lmbda: Tensor | float,
    discount_mode: DiscountMode = "env",
) -> Tensor:
    """Lambda-returns of ``Q_n(s_t, x_{n+1})`` over the flattened (time x denoising step) sequence.

    The row after row k costs ``T LR_{k+1}``, which belongs to the return of row k, unless the
    trajectory terminates in between (arXiv 2512.02019, DiffWPO)::

        G_k = r_k + d_k ((1 - l_k) Q_{k+1} + l_k G_{k+1} - T LR_{k+1})

    Args:
        value: ``Q_n(s_t, x_{n+1})`` of the steps that were taken ``[*B, T, N, 1]``.
        next_value: ``Q_0(s_{t+1}, x'_1)`` of the chain after transition t, ``[*B, T, 1]``.
        next_log_ratio: its ``LR_0`` ``[*B, T, 1]``.
        reward: ``R_t`` ``[*B, T, 1]``.
        log_ratio: ``LR_n`` of the behaviour policy ``[*B, T, N, 1]``.
        done: whether the trajectory ends after t, ``[*B, T, 1]``.
        terminated: whether it ends without bootstrapping, ``[*B, T, 1]``.
        temperature: T.
        gamma: discount factor.
        lmbda: lambda.
        discount_mode: where gamma and lambda act.

    Returns:
        ``[*B, T, N, 1]``.

    Raises:
        ValueError: for shapes that do not fit or an unknown ``discount_mode``.
    """
    check_same_shape(next_value=next_value, next_log_ratio=next_log_ratio, reward=reward)
    time, steps = log_ratio.shape[-3:-1]
    last = torch.zeros(steps, 1, dtype=torch.bool, device=value.device)
    last[-1] = True
    discount = step_discount(gamma, last, time, discount_mode, value.dtype)
    following = torch.cat((log_ratio[..., 1:, :], next_log_ratio.unsqueeze(-2)), -2)
    ended = last & terminated.unsqueeze(-2)
    cost = torch.where(ended, 0.0, discount.reshape(time, steps, 1) * following)
    return denoising_gae(
        value,
        next_value,
        reward,
        cost,
        done,
        terminated,
        temperature=temperature,
        gamma=gamma,
        lmbda=lmbda,
        discount_mode=discount_mode,
    ).value_target
