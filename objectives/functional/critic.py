"""Losses of value functions of every head: element-wise results, the caller reduces.

Paper letters: v value, y target, q probabilities, z atoms, K their number.
Per-row tensors have shape ``[*B, 1]``; shapes that do not match raise instead of broadcasting.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from objectives.checks import check_same_shape

ValueLoss = Literal["l1", "l2", "smooth_l1"]

# What keeps the gradients of a Gaussian critic finite where it is sure of itself.
_VARIANCE_FLOOR = 0.1


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


def clipped_distance(
    value: Tensor, target: Tensor, kind: ValueLoss, old_value: Tensor | None, clip: float | None
) -> Tensor:
    """The larger distance of a value and of its clipped version (PPO), ``[*B, 1]``.

    Args:
        value: ``[*B, 1]``.
        target: ``[*B, 1]``.
        kind: see :func:`value_distance`.
        old_value: ``[*B, 1]``; None is no clipping.
        clip: see :func:`clipped_value`; None is no clipping.
    """
    distance = value_distance(value, target, kind)
    if old_value is None or clip is None:
        return distance
    clipped = clipped_value(value, old_value, clip)
    return torch.maximum(distance, value_distance(clipped, target, kind))


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


def project_categorical(target_atoms: Tensor, probabilities: Tensor, atoms: Tensor) -> Tensor:
    """Project a distribution onto evenly spaced atoms (C51, arXiv 1707.06887, algorithm 1).

    Every target atom is clipped to the range of ``atoms`` and its probability is shared between
    the two atoms beside it, in proportion to their closeness. Keeps the total probability, and
    the mean where nothing is clipped.

    Args:
        target_atoms: locations ``[*B, K]``.
        probabilities: their probabilities ``[*B, K]``.
        atoms: ``z`` ``[K]``, ascending and evenly spaced.

    Returns:
        Probabilities of ``atoms``, ``[*B, K]``.
    """
    check_same_shape(target_atoms=target_atoms, probabilities=probabilities)
    if target_atoms.shape[-1:] != atoms.shape:
        raise ValueError(
            f"target_atoms must end in {atoms.shape[0]} atoms, got {tuple(target_atoms.shape)}."
        )
    last = atoms.shape[0] - 1
    position = (target_atoms - atoms[0]) * (last / (atoms[-1] - atoms[0]))
    position = position.clamp(0, last)
    lower = position.floor().clamp(max=last - 1)
    upper_share = position - lower
    index = lower.long()
    projected = torch.zeros_like(probabilities)
    projected = projected.scatter_add(-1, index, probabilities * (1 - upper_share))
    return projected.scatter_add(-1, index + 1, probabilities * upper_share)


def clipped_mass(target_atoms: Tensor, probabilities: Tensor, atoms: Tensor) -> Tensor:
    """Probability ``[*B, 1]`` of target atoms ``[*B, K]`` that lie outside the range of ``atoms``.

    A margin of a thousandth of the atoms' distance absorbs rounding.
    """
    check_same_shape(target_atoms=target_atoms, probabilities=probabilities)
    margin = 1e-3 * (atoms[1] - atoms[0])
    outside = (target_atoms < atoms[0] - margin) | (target_atoms > atoms[-1] + margin)
    return torch.where(outside, probabilities, 0.0).sum(-1, keepdim=True)


class CategoricalLoss(NamedTuple):
    """Loss of all critics, and their mean entropy without gradient, both ``[*B, 1]``."""

    loss: Tensor
    entropy: Tensor


def categorical_loss(
    logits: Tensor, target: Tensor, entropy_coeff: Tensor | float
) -> CategoricalLoss:
    """``sum_j -sum_i target_i log q_ji + c sum_i q_ji log q_ji`` (arXiv 2502.02316).

    The second term keeps the entropy of the critics up.

    Args:
        logits: of ``E`` critics ``[*B, E, K]``.
        target: probabilities ``[*B, K]``, without gradient.
        entropy_coeff: c.
    """
    check_same_shape(logits=logits[..., 0, :], target=target)
    log_q = logits.log_softmax(-1)
    cross_entropy = -(target.unsqueeze(-2) * log_q).sum(-1)
    negative_entropy = (log_q.exp() * log_q).sum(-1)
    loss = (cross_entropy + entropy_coeff * negative_entropy).sum(-1, keepdim=True)
    return CategoricalLoss(loss, -negative_entropy.detach().mean(-1, keepdim=True))


def symmetric_value_range(reward_bound: float, gamma: float, margin: float = 2.0) -> float:
    """``v_max = margin max|r| / (1 - gamma)`` of a categorical critic on ``[-v_max, v_max]``.

    With the default margin the published ranges come out: 200 for rewards in [0, 1] (DeepMind
    Control) and 1600 for rewards up to 8 (Humanoid), both at ``gamma = 0.99``.

    Raises:
        ValueError: if the bound is not positive and finite, or gamma is not in [0, 1).
    """
    if not 0 < reward_bound < float("inf"):
        raise ValueError(f"reward_bound must be positive and finite, got {reward_bound}.")
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be in [0, 1), got {gamma}.")
    return margin * reward_bound / (1 - gamma)


def refined_gaussian_loss(
    mean: Tensor, std: Tensor, target: Tensor, sample: Tensor, spread: Tensor
) -> Tensor:
    """The refined loss of a normal distribution of returns (DSAC-T, arXiv 2310.05858).

    Only its gradient means something. With the mean q and standard deviation s of a critic, the
    expected target y, a sample z of the target's distribution, b the running mean of s, and sg for
    no gradient::

        -(b^2 + .1) (q sg((y - q) / (s^2 + .1)) + s sg(((q - z')^2 - s^2) / (s^3 + .1)))
        z' = q + clip(z - q, -3 b, 3 b)

    The mean follows y, which has less noise than z, and the standard deviation the distance of a
    clipped z. Divided by variances the gradient would be as large as rewards are small; b^2 takes
    their unit out.

    Args:
        mean: q ``[*B, 1]``.
        std: s ``[*B, 1]``, positive.
        target: y ``[*B, 1]``, without gradient.
        sample: z ``[*B, 1]``, without gradient.
        spread: b, a scalar, without gradient.

    Returns:
        ``[*B, 1]``.
    """
    check_same_shape(mean=mean, std=std, target=target, sample=sample)
    q, s = mean.detach(), std.detach()
    clipped = (sample - q).clamp(-3 * spread, 3 * spread)
    to_mean = (target - q) / (s.square() + _VARIANCE_FLOOR)
    to_std = (clipped.square() - s.square()) / (s.pow(3) + _VARIANCE_FLOOR)
    return -(spread.square() + _VARIANCE_FLOOR) * (mean * to_mean + std * to_std)
