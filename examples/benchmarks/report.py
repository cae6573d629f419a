"""Return curves and a table from committed results.

    python examples/benchmarks/report.py --env HalfCheetah-v5

Draws the mean over seeds with its 95 % confidence band to results/<env>.png and prints how the
evaluations acted, the mean, the interquartile mean with its 95 % confidence interval, and the range
over seeds at the last evaluation. Intervals are bootstraps over seeds (diffpolicy/cli/curves.py).
Every seed counts and no checkpoint is picked.

Below four seeds the interquartile mean and its interval are a dash: a quarter of the seeds is then
less than one, so nothing would be left out at either end and the mean would be printed twice.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from diffpolicy.cli.curves import Curve, curve_of, draw, over_seeds, table

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


def load_curves(folder: Path) -> dict[str, Curve]:
    """The curve of every method in a folder.

    Raises:
        ValueError: if there is no results file, one does not say how its evaluations acted, or
            the seeds of a method ended at different steps or acted differently.
    """
    runs: dict[str, list[Curve]] = defaultdict(list)
    for path in sorted(folder.glob("*-seed*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        runs[path.name.rsplit("-seed", 1)[0]].append(curve_of(results, path))
    if not runs:
        raise ValueError(f"no results in {folder}; run examples/benchmarks/run.py first.")
    return {name: over_seeds(seeds, f"{name} in {folder}") for name, seeds in runs.items()}


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
    named = {NAMES.get(method, method): curve for method, curve in sorted(curves.items())}
    draw(named, args.env, args.results / f"{name}.png")
    print(table(named))


if __name__ == "__main__":
    main()
