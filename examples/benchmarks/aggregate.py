"""Interquartile means over runs of several tasks, with intervals, as rliable has them.

Scores are normalised returns, one array of runs for each task. All runs count alike. Intervals are
percentile bootstraps that draw the runs of each task anew (arXiv 2108.13264).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffpolicy.cli.curves import CONFIDENCE, REPETITIONS, interquartile_mean

Array = NDArray[np.float64]


def normalized(returns: Array, zero: float, one: float) -> Array:
    """Returns on a scale on which ``zero`` is 0 and ``one`` is 1.

    Args:
        returns: of any shape.
        zero: return of a policy that has learned nothing.
        one: return of a good one.

    Raises:
        ValueError: ``one`` is not above ``zero``.
    """
    if not one > zero:
        raise ValueError(f"one must be above zero, {zero}, got {one}.")
    return (returns - zero) / (one - zero)


def aggregate(scores: Sequence[Array]) -> float:
    """The mean of the middle half of all runs.

    Args:
        scores: ``[runs]`` of each task; numbers of runs may differ.
    """
    return float(interquartile_mean(np.concatenate(scores)))


def interval(scores: Sequence[Array], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of :func:`aggregate`, by a stratified bootstrap.

    Args:
        scores: ``[runs]`` of each task.
        seed: of the samples that are drawn.

    Returns:
        Its ends.
    """
    generator = np.random.default_rng(seed)
    drawn = [runs[generator.integers(len(runs), size=(REPETITIONS, len(runs)))] for runs in scores]
    values = interquartile_mean(np.concatenate(drawn, axis=1).T)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
