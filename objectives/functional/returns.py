"""Targets and returns over the denoising MDP: element-wise results.

Paper letters: T temperature, LR log-ratio, V and Q values, G return, n denoising step.
Per-row tensors have shape ``[*B, 1]``; shapes that do not match raise instead of broadcasting.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate

from objectives.checks import check_choice, check_same_shape

DiscountMode = Literal["env", "denoising_step"]


def soft_target(
    next_value: Tensor,
    reward: Tensor,
    terminated: Tensor,
    entropy_cost: Tensor,
    *,
    discount: Tensor,
    temperature: Tensor,
) -> Tensor:
    """``r + (1 - terminated) gamma (v' - alpha (run' + term'))`` (arXiv 2502.02316, section 4).

    Args:
        next_value: ``v'`` ``[*B, 1]``, or the atoms ``[K]`` of a categorical critic.
        reward: ``[*B, 1]``.
        terminated: boolean ``[*B, 1]``; a truncated transition is not terminated.
        entropy_cost: ``run' + term'`` of the next action ``[*B, 1]``.
        discount: ``gamma``, a scalar or ``[*B, 1]`` (n-step returns).
        temperature: alpha, a scalar.

    Returns:
        ``[*B, 1]``, or ``[*B, K]`` for atoms. Not clipped.
    """
    check_same_shape(reward=reward, terminated=terminated, entropy_cost=entropy_cost)
    if next_value.ndim > 1:
        check_same_shape(reward=reward, next_value=next_value)
    bootstrap = discount * (next_value - temperature * entropy_cost)
    return reward + torch.where(terminated, 0.0, bootstrap)


class AdvantageEstimate(NamedTuple):
    """Advantages and value targets per denoising step, both ``[*B, T, N, 1]``."""

    advantage: Tensor
    value_target: Tensor


def denoising_gae(
    value: Tensor,
    bootstrap: Tensor,
    reward: Tensor,
    log_ratio: Tensor,
    done: Tensor,
    terminated: Tensor,
    *,
    temperature: Tensor | float,
    gamma: Tensor | float,
    lmbda: Tensor | float,
    discount_mode: DiscountMode = "env",
) -> AdvantageEstimate:
    """Generalised advantage estimation over the flattened (time x denoising step) sequence.

    Row (t, n) has the soft reward ``1[n = N-1] R_t - T LR_n`` (arXiv 2512.02019, eqs. of section
    3 and DiffPPO). With ``discount_mode="env"`` gamma and lambda act at n = N-1 only and are 1
    inside a chain; with ``"denoising_step"`` they act at every row.

    Args:
        value: ``V(s_t, x_n, n)`` ``[*B, T, N, 1]``.
        bootstrap: value of the state after transition t, ``V(s_{t+1}, x'_0, 0)``, ``[*B, T, 1]``.
            After a truncation this is the value of the true last observation.
        reward: ``R_t`` ``[*B, T, 1]``.
        log_ratio: ``LR_n`` of the behaviour policy ``[*B, T, N, 1]``.
        done: whether the trajectory ends after t, ``[*B, T, 1]``.
        terminated: whether it ends without bootstrapping, ``[*B, T, 1]``.
        temperature: T.
        gamma: discount factor, a scalar or ``[*B, T, 1]`` for transitions of several steps.
        lmbda: GAE lambda.
        discount_mode: where gamma and lambda act.

    Raises:
        ValueError: for shapes that do not fit or an unknown ``discount_mode``.
    """
    check_same_shape(value=value, log_ratio=log_ratio)
    check_same_shape(bootstrap=bootstrap, reward=reward, done=done, terminated=terminated)
    check_same_shape(value=value[..., 0, :], reward=reward)
    *batch, time, steps, _ = value.shape
    last = torch.zeros(steps, 1, dtype=torch.bool, device=value.device)
    last[-1] = True

    def at_last(tensor: Tensor, other: Tensor | float) -> Tensor:
        return torch.where(last, tensor.unsqueeze(-2), other).flatten(-3, -2)

    soft_reward = at_last(reward, 0.0) - (temperature * log_ratio).flatten(-3, -2)
    following = torch.cat((value[..., 1:, :], bootstrap.unsqueeze(-2)), -2).flatten(-3, -2)
    never = torch.zeros_like(done).unsqueeze(-2)
    advantage, target = generalized_advantage_estimate(
        step_discount(gamma, last, time, discount_mode, value.dtype),
        step_discount(lmbda, last, time, discount_mode, value.dtype),
        value.flatten(-3, -2),
        following,
        soft_reward,
        at_last(done, never),
        at_last(terminated, never),
    )
    shape = (*batch, time, steps, 1)
    return AdvantageEstimate(advantage.reshape(shape), target.reshape(shape))


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
        gamma: discount factor, a scalar or ``[*B, T, 1]`` for transitions of several steps.
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
    cost = torch.where(ended, 0.0, discount.unflatten(-2, (time, steps)) * following)
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


def step_discount(
    factor: Tensor | float,
    last: Tensor,
    time: int,
    discount_mode: DiscountMode,
    dtype: torch.dtype,
) -> Tensor:
    """A discount per row of the flattened sequence, ``[T * N, 1]`` or ``[*B, T * N, 1]``.

    Args:
        factor: gamma or lambda, a scalar or one for each transition ``[*B, T, 1]``.
        last: whether a denoising step is the last of its chain ``[N, 1]``.
        time: number of transitions T.
        discount_mode: ``"env"`` applies the factor at the last step only.
        dtype: dtype of the result.
    """
    check_choice("discount_mode", discount_mode, ("env", "denoising_step"))
    factor = torch.as_tensor(factor, dtype=dtype, device=last.device)
    inside = torch.ones_like(factor) if discount_mode == "env" else factor
    if factor.ndim == 0:
        return torch.where(last, factor, inside).repeat(time, 1)
    return torch.where(last, factor.unsqueeze(-2), inside.unsqueeze(-2)).flatten(-3, -2)
