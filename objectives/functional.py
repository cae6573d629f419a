"""The algebra of the losses as pure functions: element-wise results, the caller reduces.

Paper letters: T temperature, LR log-ratio, rho likelihood ratio, V value, n denoising step.
Per-row tensors have shape ``[*B, 1]``; shapes that do not match raise instead of broadcasting.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from diffpolicy.networks.ranks import sum_over_ranks
from objectives.checks import check_choice

DiscountMode = Literal["env", "denoising_step"]
AdvantageNormalization = Literal["center", "standardize"]


def check_same_shape(**tensors: Tensor) -> None:
    """Raise a ValueError that names the tensors if their shapes differ."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes must be equal, got {shapes}.")


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
        gamma: discount factor.
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


def step_discount(
    factor: Tensor | float,
    last: Tensor,
    time: int,
    discount_mode: DiscountMode,
    dtype: torch.dtype,
) -> Tensor:
    """A discount per row of the flattened sequence, ``[T * N, 1]``.

    Args:
        factor: gamma or lambda.
        last: whether a denoising step is the last of its chain ``[N, 1]``.
        time: number of transitions T.
        discount_mode: ``"env"`` applies the factor at the last step only.
        dtype: dtype of the result.
    """
    check_choice("discount_mode", discount_mode, ("env", "denoising_step"))
    factor = torch.as_tensor(factor, dtype=dtype, device=last.device)
    inside = torch.ones_like(factor) if discount_mode == "env" else factor
    return torch.where(last, factor, inside).repeat(time, 1)


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
    advantage: Tensor, mode: AdvantageNormalization | None, valid: Tensor | None = None
) -> NormalizedAdvantage:
    """Centre or standardise advantages ``[*B, 1]`` over the valid rows of all ranks.

    Args:
        advantage: ``[*B, 1]``.
        mode: ``"center"`` subtracts the mean, ``"standardize"`` also divides by the std, None
            changes nothing.
        valid: boolean ``[*B, 1]``; None counts every row.
    """
    one = advantage.new_ones(())
    if mode is None:
        return NormalizedAdvantage(advantage, one)
    counted = advantage.new_ones(advantage.shape) if valid is None else valid.to(advantage)
    known = advantage if valid is None else torch.where(valid, advantage, 0.0)
    number, total = sum_over_ranks(torch.stack((counted.sum(), known.sum())))
    centered = advantage - total / number.clamp_min(1)
    if mode == "center":
        return NormalizedAdvantage(centered, one)
    squares = (counted * torch.where(counted > 0, centered, 0.0).square()).sum()
    variance = sum_over_ranks(squares) / (number - 1).clamp_min(1)
    scale = variance.sqrt().clamp_min(1e-6)
    return NormalizedAdvantage(centered / scale, scale)


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


ValueLoss = Literal["l1", "l2", "smooth_l1"]


def value_distance(value: Tensor, target: Tensor, kind: ValueLoss) -> Tensor:
    """Element-wise ``|v - y|``, ``(v - y)^2`` or smooth L1 of ``[*B, 1]`` tensors."""
    check_same_shape(value=value, target=target)
    if kind == "l2":
        return (value - target).square()
    if kind == "l1":
        return (value - target).abs()
    return smooth_l1_loss(value, target, reduction="none")


def clipped_value(value: Tensor, old_value: Tensor, clip: float) -> Tensor:
    """``V_old + clip(V - V_old, -clip, clip)``, all ``[*B, 1]``."""
    check_same_shape(value=value, old_value=old_value)
    return old_value + (value - old_value).clamp(-clip, clip)


def explained_variance(value: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """``1 - Var(y - v) / Var(y)``, a scalar; 1 is a perfect fit, 0 a constant.

    Args:
        value: predictions v ``[*B, 1]``.
        target: y ``[*B, 1]``.
        valid: boolean ``[*B, 1]``; None counts every row.
    """
    check_same_shape(value=value, target=target)
    error = _variance(target - value, valid)
    return 1 - error / _variance(target, valid).clamp_min(1e-12)


def _variance(value: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return value.var(correction=0)
    number = valid.sum().clamp_min(1)
    mean = torch.where(valid, value, 0.0).sum() / number
    return torch.where(valid, value - mean, 0.0).square().sum() / number


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
