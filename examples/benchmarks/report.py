"""Return curves and a table from committed results.

    python examples/benchmarks/report.py --env HalfCheetah-v5

Draws the mean over seeds with a 95 % bootstrap confidence band to results/<env>.png and prints the
mean, the interquartile mean and the range over seeds at the last evaluation. Every seed counts and
no checkpoint is picked.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from scipy import stats

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "diffppo": "DiffPPO",
    "dime": "DIME",
    "ppo": "Gaussian PPO",
    "ppo-lr-3e-4": "Gaussian PPO, lr 3e-4",
}


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


def confidence_band(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval ``[E]``, ``[E]`` of the mean of ``[seeds, E]``."""
    if len(returns) == 1:
        return returns[0], returns[0]
    interval = stats.bootstrap(
        (returns,), np.mean, axis=0, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return interval.low, interval.high


def draw(curves: dict[str, Curve], title: str, path: Path) -> None:
    """Save the curves of all methods as a picture."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for method, (steps, returns, _) in sorted(curves.items()):
        label = f"{NAMES.get(method, method)} ({len(returns)} seeds)"
        (line,) = axes.plot(steps, returns.mean(0), label=label)
        axes.fill_between(steps, *confidence_band(returns), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="environment steps", ylabel="evaluation return", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(curves: dict[str, Curve]) -> str:
    """A Markdown table of the last evaluation."""
    lines = [
        "| method | env steps | gradient steps | mean | IQM | min | max | per seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, (steps, returns, updates) in sorted(curves.items()):
        last = returns[:, -1]
        numbers = (last.mean(), stats.trim_mean(last, 0.25), last.min(), last.max())
        cells = " | ".join(f"{number:.0f}" for number in numbers)
        seeds = ", ".join(f"{value:.0f}" for value in last)
        counts = f"{steps[-1]} | {updates}"
        lines.append(f"| {NAMES.get(method, method)} | {counts} | {cells} | {seeds} |")
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
