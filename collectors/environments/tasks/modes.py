"""Which modes a policy keeps: assignment of samples to modes, and how evenly they are spread.

Everything here is NumPy; tensors on the CPU are accepted wherever arrays are.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]

#: What :func:`reached_goal` gives where no goal was reached.
NO_MODE = -1


class ModeCoverage(NamedTuple):
    """How a policy spreads over ``M`` modes, both in [0, 1] and of shape ``[*B]``.

    Attributes:
        coverage: fraction of the modes that get more than the threshold of their fair share 1/M.
        entropy: entropy of the shares over its maximum, log M.
    """

    coverage: FloatArray
    entropy: FloatArray


def mode_coverage(histogram: ArrayLike, *, threshold: float = 0.2) -> ModeCoverage:
    """Measure how many modes a policy keeps, and how evenly it visits them.

    Args:
        histogram: ``[*B, M]`` number of samples in each of M >= 2 modes, integers.
        threshold: share of a mode, relative to the fair share 1/M, that it must exceed to count as
            kept; in [0, 1).

    Raises:
        ValueError: not counts, fewer than two modes, a histogram without samples, or a threshold
            out of range.

    Example:
        >>> coverage, entropy = mode_coverage([[50, 50, 0, 0], [96, 2, 1, 1]])
        >>> coverage.tolist(), entropy.round(2).tolist()
        ([0.5, 0.25], [0.5, 0.15])
    """
    counts = np.asarray(histogram)
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"histogram must hold integer counts, got {counts.dtype}; count samples with "
            "collectors.count_modes."
        )
    if counts.ndim == 0 or counts.shape[-1] < 2:
        raise ValueError(
            f"histogram must be [*B, M] with at least two modes, got the shape {counts.shape}."
        )
    if (counts < 0).any():
        raise ValueError(f"histogram must not hold negative counts, got {counts.min()}.")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}; 0.2 is usual.")
    total = counts.sum(-1, keepdims=True)
    if (total == 0).any():
        empty = int((total == 0).sum())
        raise ValueError(
            f"histogram must hold samples, but {empty} of {total.size} are empty; leave those out."
        )
    share = counts / total
    modes = counts.shape[-1]
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(-1) / np.log(modes)
    return ModeCoverage((share > threshold / modes).mean(-1), entropy)


def count_modes(modes: ArrayLike, num_modes: int) -> IntArray:
    """Histogram over modes: indices ``[*B, S]`` of S samples to counts ``[*B, num_modes]``.

    Samples without a mode (:data:`NO_MODE`) are not counted.

    Raises:
        ValueError: an index that is neither a mode nor :data:`NO_MODE`.

    Example:
        >>> count_modes([[0, 1, 1], [2, -1, 2]], 3).tolist()
        [[1, 2, 0], [0, 0, 2]]
    """
    indices = np.asarray(modes)
    if indices.size and not (indices.min() >= NO_MODE and indices.max() < num_modes):
        raise ValueError(
            f"modes must be in [0, {num_modes}), or {NO_MODE} for none, got values from "
            f"{indices.min()} to {indices.max()}."
        )
    return (indices[..., None] == np.arange(num_modes)).sum(-2, dtype=np.int64)


def nearest_mode(action: ArrayLike, maxima: ArrayLike) -> IntArray:
    """Index ``[*B]`` of the maximum ``[M]`` that is nearest to each scalar action ``[*B]``.

    Ties go to the maximum that is listed first. For two maxima of opposite sign this is the sign
    of the action.
    """
    distance = np.abs(np.asarray(action)[..., None] - np.asarray(maxima))
    return np.asarray(distance.argmin(-1), dtype=np.int64)


def reached_goal(position: ArrayLike, goals: ArrayLike, radius: float) -> IntArray:
    """Index ``[*B]`` of the goal that each position ``[*B, D]`` has reached.

    Args:
        position: where trajectories end.
        goals: ``[M, D]``.
        radius: distance within which a goal counts as reached.

    Returns:
        The nearest goal where it is within ``radius``, else :data:`NO_MODE`.
    """
    offset = np.asarray(position)[..., None, :] - np.asarray(goals)
    distance = np.linalg.norm(offset, axis=-1)
    return np.where(distance.min(-1) <= radius, distance.argmin(-1), NO_MODE).astype(np.int64)
