"""Return curves over seeds, their bands, and the table of final returns; without torch.

Bands and intervals are percentile bootstraps over seeds, and the interquartile mean is that of
rliable (arXiv 2108.13264). Every seed counts and no checkpoint is picked.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffpolicy.errors import ArgumentError

RESULTS_FILE = "results.json"
# What the table says for each --eval-policy.
ACTING = {"deterministic": "deterministic", "stochastic": "sampled"}
REPETITIONS = 2000
CONFIDENCE = 0.95
TRIMMED_SEEDS = 4  # from here on, the interquartile mean leaves seeds out

Array = NDArray[np.float64]


class Curve(NamedTuple):
    """The evaluations of runs that differ in their seeds.

    Attributes:
        steps: environment steps ``[E]``.
        returns: ``[seeds, E]``.
        gradient_steps: updates until the last evaluation.
        acting: "sampled" or "deterministic".
    """

    steps: NDArray[np.int64]
    returns: Array
    gradient_steps: int
    acting: str


def read_results(run: Path) -> dict[str, Any]:
    """What a run has written into results.json.

    Args:
        run: its folder, or the file.

    Raises:
        ArgumentError: there is no such file, or it is not one of a run.
    """
    path = run / RESULTS_FILE if run.is_dir() else run
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not results["evaluations"]:
            raise ArgumentError("run", str(run), "has not been evaluated yet.")
    except OSError as error:
        problem = f"is not a run: {path} cannot be read ({error.strerror})."
        raise ArgumentError("run", str(run), problem) from error
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError("run", str(run), f"is not a run: {path} is something else.") from error
    return dict(results)


def curve_of(results: Mapping[str, Any], source: Path) -> Curve:
    """The curve of one seed, with returns ``[1, E]``.

    Args:
        results: from :func:`read_results`.
        source: what errors call it.

    Raises:
        ValueError: if it does not say how its evaluations acted.
    """
    policy = results.get("config", {}).get("eval_policy")
    if policy not in ACTING:
        raise ValueError(
            f"config.eval_policy in {source} must be one of {', '.join(ACTING)}, got {policy!r}."
        )
    evaluations = results["evaluations"]
    return Curve(
        steps=np.array([evaluation["env_steps"] for evaluation in evaluations]),
        returns=np.array([[evaluation["return_mean"] for evaluation in evaluations]]),
        gradient_steps=results["gradient_steps"],
        acting=ACTING[policy],
    )


def over_seeds(curves: Sequence[Curve], name: str) -> Curve:
    """Several seeds as one curve, at the steps at which all of them were evaluated.

    Args:
        curves: of each seed.
        name: what errors call them.

    Raises:
        ValueError: the seeds ended at different steps or acted differently.
    """
    first = curves[0]
    if any(curve.steps[-1] != first.steps[-1] for curve in curves):
        raise ValueError(f"the seeds of {name} ended at different steps.")
    if any(curve.acting != first.acting for curve in curves):
        raise ValueError(
            f"the seeds of {name} were evaluated partly with sampled and partly with "
            "deterministic actions; run them with the same --eval-policy, or give one part "
            "another --label."
        )
    # Some may have been evaluated more often.
    steps = reduce(np.intersect1d, [curve.steps for curve in curves])
    returns = [curve.returns[:, np.isin(curve.steps, steps)] for curve in curves]
    return first._replace(steps=steps, returns=np.concatenate(returns))


def confidence(
    returns: Array, aggregate: Callable[[Array], Array], seed: int = 0
) -> tuple[Array, Array]:
    """95 % interval of an aggregate over seeds, by the percentile bootstrap.

    Args:
        returns: ``[seeds, E]``.
        aggregate: maps ``[seeds, E]`` to ``[E]``.
        seed: of the samples that are drawn.

    Returns:
        Its ends ``[E]`` and ``[E]``.
    """
    samples = np.random.default_rng(seed).integers(len(returns), size=(REPETITIONS, len(returns)))
    values = np.stack([aggregate(returns[rows]) for rows in samples])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail), axis=0)
    return low, high


def interquartile_mean(returns: Array) -> Array:
    """The mean of the middle half of the seeds: ``[seeds, E]`` to ``[E]``."""
    count = len(returns)
    cut = count // 4
    middle: Array = np.sort(returns, axis=0)[cut : count - cut].mean(0)
    return middle


def mean(returns: Array) -> Array:
    """The mean over seeds: ``[seeds, E]`` to ``[E]``."""
    average: Array = returns.mean(0)
    return average


def draw(
    curves: Mapping[str, Curve],
    title: str,
    path: Path,
    colors: Mapping[str, str] | None = None,
) -> None:
    """Save mean curves with their confidence bands as a picture.

    Args:
        curves: by the label of the legend.
        title: above them.
        path: a file whose ending says what kind of picture it is.
        colors: by the same labels; those of matplotlib, one after the other, by default.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, curve in curves.items():
        seeds = len(curve.returns)
        words = f"{label} ({seeds} seed{'s' if seeds > 1 else ''})"
        color = None if colors is None else colors[label]
        (line,) = axes.plot(curve.steps, mean(curve.returns), label=words, color=color)
        if seeds > 1:
            band = confidence(curve.returns, mean)
            axes.fill_between(curve.steps, *band, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="environment steps", ylabel="evaluation return", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", framealpha=0.6)
    figure.savefig(path, dpi=120)


def table(curves: Mapping[str, Curve], head: str = "method") -> str:
    """A Markdown table of the last evaluation.

    Args:
        curves: by the label of their line.
        head: what the column of labels is called.
    """
    columns = f"{head}, acting, env steps, gradient steps, mean, IQM, 95 % of IQM, min, max"
    names = [*columns.split(", "), "per seed"]
    lines = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for label, (steps, returns, updates, acting) in curves.items():
        last = returns[:, -1:]
        cells = [
            label,
            acting,
            f"{steps[-1]} | {updates}",
            f"{last.mean():.0f} | {_iqm_cells(last)}",
            f"{last.min():.0f} | {last.max():.0f}",
            ", ".join(f"{value:.0f}" for value in last.flat),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _iqm_cells(last: Array) -> str:
    """The cells for the interquartile mean of ``[seeds, 1]`` returns and for its interval."""
    if len(last) < TRIMMED_SEEDS:
        return "\N{EN DASH} | \N{EN DASH}"
    (iqm,), ((low,), (high,)) = interquartile_mean(last), confidence(last, interquartile_mean)
    return f"{iqm:.0f} | {low:.0f} to {high:.0f}"
