"""Return curves and a table from committed results.

    python examples/benchmarks/report.py --env HalfCheetah-v5

Draws the mean over seeds with its 95 % confidence band to results/<env>.png and prints the mean,
the interquartile mean with its 95 % confidence interval, and the range over seeds at the last
evaluation. Intervals are rliable's stratified bootstrap (arXiv 2108.13264). Every seed counts and
no checkpoint is picked.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from rliable import library, metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "diffppo": "DiffPPO",
    "diffsac": "DiffSAC",
    "diffwpo": "DiffWPO",
    "dime": "DIME",
    "ppo": "Gaussian PPO",
    "ppo-lr-3e-4": "Gaussian PPO, lr 3e-4",
    "sac": "Gaussian SAC",
    "wpo": "Gaussian WPO",
}
REPETITIONS = 2000


class Curve(NamedTuple):
    """Environment steps ``[E]`` and returns ``[seeds, E]`` of a method, and its updates."""

    steps: np.ndarray
    returns: np.ndarray
    gradient_steps: int


def load_curves(folder: Path) -> dict[str, Curve]:
    """The curve of every method in a folder.

    Raises:
        ValueError: if there is no results file, or seeds were evaluated at different steps.
    """
    runs: dict[str, list[tuple[list[int], list[float], int]]] = defaultdict(list)
    for path in sorted(folder.glob("*-seed*.json")):
        results = json.loads(path.read_text())
        steps = [evaluation["env_steps"] for evaluation in results["evaluations"]]
        returns = [evaluation["return_mean"] for evaluation in results["evaluations"]]
        method = path.name.rsplit("-seed", 1)[0]
        runs[method].append((steps, returns, results["gradient_steps"]))
    if not runs:
        raise ValueError(f"no results in {folder}; run examples/benchmarks/run.py first.")
    curves = {}
    for method, seeds in runs.items():
        steps, _, updates = seeds[0]
        if any(other != steps for other, _, _ in seeds):
            raise ValueError(
                f"the seeds of {method} in {folder} were evaluated at different steps."
            )
        by_seed = np.array([values for _, values, _ in seeds])
        curves[method] = Curve(np.array(steps), by_seed, updates)
    return curves


def confidence(
    returns: np.ndarray, aggregate: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of an aggregate over seeds.

    Args:
        returns: ``[seeds, E]``.
        aggregate: maps ``[seeds, 1, E]`` (rliable's runs and tasks) to ``[E]``.

    Returns:
        Its ends ``[E]`` and ``[E]``.
    """
    # rliable draws from the global generator, whatever random_state it is given.
    np.random.seed(0)  # noqa: NPY002
    _, intervals = library.get_interval_estimates(
        {"": returns[:, None]}, aggregate, reps=REPETITIONS
    )
    low, high = intervals[""]
    return low, high


def interquartile_mean(returns: np.ndarray) -> np.ndarray:
    """The interquartile mean ``[1]`` of everything in ``returns``."""
    return np.array([metrics.aggregate_iqm(returns)])


def draw(curves: dict[str, Curve], title: str, path: Path) -> None:
    """Save the curves of all methods as a picture."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for method, (steps, returns, _) in sorted(curves.items()):
        label = f"{NAMES.get(method, method)} ({len(returns)} seeds)"
        (line,) = axes.plot(steps, returns.mean(0), label=label)
        band = confidence(returns, metrics.aggregate_mean)
        axes.fill_between(steps, *band, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="environment steps", ylabel="evaluation return", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(curves: dict[str, Curve]) -> str:
    """A Markdown table of the last evaluation."""
    lines = [
        "| method | env steps | gradient steps | mean | IQM | 95 % of IQM | min | max | per seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, (steps, returns, updates) in sorted(curves.items()):
        last = returns[:, -1:]
        (iqm,), ((low,), (high,)) = interquartile_mean(last), confidence(last, interquartile_mean)
        cells = [
            NAMES.get(method, method),
            f"{steps[-1]} | {updates}",
            f"{last.mean():.0f} | {iqm:.0f} | {low:.0f} to {high:.0f}",
            f"{last.min():.0f} | {last.max():.0f}",
            ", ".join(f"{value:.0f}" for value in last.flat),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium id or dmc:domain-task")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    try:
        name = args.env.replace(":", "-")
        curves = load_curves(args.results / name)
    except ValueError as error:
        parser.error(str(error))
    draw(curves, args.env, args.results / f"{name}.png")
    print(table(curves))


if __name__ == "__main__":
    main()
