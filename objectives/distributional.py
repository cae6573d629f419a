"""The algebra of soft Q targets, scalar and categorical: element-wise, the caller reduces.

Paper letters: z atoms, alpha temperature, K number of atoms, gamma discount.
Per-row tensors have shape ``[*B, 1]``; shapes that do not match raise instead of broadcasting.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from objectives.functional import check_same_shape


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
