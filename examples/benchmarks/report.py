"""Return curves and a table from committed results.

    python examples/benchmarks/report.py --env HalfCheetah-v5

Draws the mean over seeds with its 95 % confidence band to results/<env>.png and prints how the
evaluations acted, the mean, the interquartile mean with its 95 % confidence interval, and the range
over seeds at the last evaluation. Intervals are rliable's stratified bootstrap (arXiv 2108.13264).
Every seed counts and no checkpoint is picked.

Below four seeds the interquartile mean and its interval are a dash: a quarter of the seeds is then
less than one, so nothing would be left out at either end and the mean would be printed twice.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import reduce
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
    "diffwpo-200k": "DiffWPO, 200k steps",
    "dime": "DIME",
    "ppo": "Gaussian PPO",
    "ppo-lr-3e-4": "Gaussian PPO, lr 3e-4",
    "sac": "Gaussian SAC",
    "wpo": "Gaussian WPO",
}
# What the table says for each --eval-policy.
ACTING = {"deterministic": "deterministic", "stochastic": "sampled"}
REPETITIONS = 2000
TRIMMED_SEEDS = 4  # from here on, the interquartile mean leaves seeds out


class Curve(NamedTuple):
    """The evaluations of a method.

    Attributes:
        steps: environment steps ``[E]``.
        returns: ``[seeds, E]``.
        gradient_steps: updates until the last evaluation.
        acting: "sampled" or "deterministic".
    """

    steps: np.ndarray
    returns: np.ndarray
    gradient_steps: int
    acting: str


def load_run(path: Path) -> Curve:
    """The curve of one seed, with returns ``[1, E]``.

    Raises:
        ValueError: if the file does not say how its evaluations acted.
    """
    results = json.loads(path.read_text(encoding="utf-8"))
    policy = results.get("config", {}).get("eval_policy")
    if policy not in ACTING:
        raise ValueError(
            f"config.eval_policy in {path} must be one of {', '.join(ACTING)}, got {policy!r}."
        )
    evaluations = results["evaluations"]
    return Curve(
        steps=np.array([evaluation["env_steps"] for evaluation in evaluations]),
        returns=np.array([[evaluation["return_mean"] for evaluation in evaluations]]),
        gradient_steps=results["gradient_steps"],
        acting=ACTING[policy],
    )


def load_curves(folder: Path) -> dict[str, Curve]:
    """The curve of every method in a folder.

    Raises:
        ValueError: if there is no results file, one does not say how its evaluations acted, or
            the seeds of a method ended at different steps or acted differently.
    """
    runs: dict[str, list[Curve]] = defaultdict(list)
    for path in sorted(folder.glob("*-seed*.json")):
        runs[path.name.rsplit("-seed", 1)[0]].append(load_run(path))
    if not runs:
        raise ValueError(f"no results in {folder}; run examples/benchmarks/run.py first.")
    curves = {}
    for method, seeds in runs.items():
        first = seeds[0]
        if any(seed.steps[-1] != first.steps[-1] for seed in seeds):
            raise ValueError(f"the seeds of {method} in {folder} ended at different steps.")
        # Some may have been evaluated more often.
        steps = reduce(np.intersect1d, [seed.steps for seed in seeds])
        if any(seed.acting != first.acting for seed in seeds):
            raise ValueError(
                f"the seeds of {method} in {folder} were evaluated partly with sampled and partly "
                "with deterministic actions; run them with the same --eval-policy, or give one "
                "part another --label."
            )
        returns = [seed.returns[:, np.isin(seed.steps, steps)] for seed in seeds]
        curves[method] = first._replace(steps=steps, returns=np.concatenate(returns))
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
    for method, (steps, returns, _, _) in sorted(curves.items()):
        label = f"{NAMES.get(method, method)} ({len(returns)} seeds)"
        (line,) = axes.plot(steps, returns.mean(0), label=label)
        band = confidence(returns, metrics.aggregate_mean)
        axes.fill_between(steps, *band, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="environment steps", ylabel="evaluation return", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", framealpha=0.6)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def iqm_cells(last: np.ndarray) -> str:
    """The cells for the interquartile mean of ``[seeds, 1]`` returns and for its interval."""
    if len(last) < TRIMMED_SEEDS:
        return "\N{EN DASH} | \N{EN DASH}"
    (iqm,), ((low,), (high,)) = interquartile_mean(last), confidence(last, interquartile_mean)
    return f"{iqm:.0f} | {low:.0f} to {high:.0f}"


def table(curves: dict[str, Curve]) -> str:
    """A Markdown table of the last evaluation."""
    columns = (
        "method, acting, env steps, gradient steps, mean, IQM, 95 % of IQM, min, max, per seed"
    )
    names = columns.split(", ")
    lines = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for method, (steps, returns, updates, acting) in sorted(curves.items()):
        last = returns[:, -1:]
        cells = [
            NAMES.get(method, method),
            acting,
            f"{steps[-1]} | {updates}",
            f"{last.mean():.0f} | {iqm_cells(last)}",
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
