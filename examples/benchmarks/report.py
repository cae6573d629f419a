"""Return curves and a table from committed results.

    python examples/benchmarks/report.py --env HalfCheetah-v5
    python examples/benchmarks/report.py --protocol

Draws the mean over seeds with its 95 % confidence band to results/<env>.png and prints how the
evaluations acted, the mean, the interquartile mean with its 95 % confidence interval, and the range
over seeds at the last evaluation. Intervals are bootstraps over seeds (diffpolicy/cli/curves.py).
Every seed counts and no checkpoint is picked.

Below four seeds the interquartile mean and its interval are a dash: a quarter of the seeds is then
less than one, so nothing would be left out at either end and the mean would be printed twice.

With --protocol it writes docs/results.md and its pictures from results/protocol instead, whatever
is there of the runs of protocol.py; the same files give the same page.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from protocol import NAMES  # type: ignore[import-not-found]
from protocol_page import draw_pictures, link_from, page  # type: ignore[import-not-found]
from protocol_results import load  # type: ignore[import-not-found]

from diffpolicy.cli.curves import Curve, curve_of, draw, over_seeds, table

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "results.md"


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


def report_task(env: str, results: Path) -> None:
    """Draw the picture of a task and print its table.

    Raises:
        ValueError: as :func:`load_curves` does.
    """
    name = env.replace(":", "-")
    curves = load_curves(results / name)
    named = {NAMES.get(method, method): curve for method, curve in sorted(curves.items())}
    draw(named, env, results / f"{name}.png")
    print(table(named))


def report_protocol(results: Path, file: Path) -> None:
    """Write the page of the protocol, and its pictures beside the results.

    Raises:
        ValueError: results are not of the protocol.
    """
    groups = load(results)
    draw_pictures(groups, results)
    file.write_text(page(groups, link_from(file, results)), encoding="utf-8")
    for group in groups:
        print(f"{group.group.name}: {group.present} of {group.planned} runs")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture and print the table, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium id or dmc:domain-task")
    parser.add_argument("--protocol", action="store_true", help="write the page of the protocol")
    parser.add_argument("--page", type=Path, default=PAGE, help="where it is written")
    parser.add_argument("--results", type=Path, help="folder of results")
    args = parser.parse_args(argv)
    try:
        if args.protocol:
            report_protocol(args.results or RESULTS / "protocol", args.page)
        else:
            report_task(args.env, args.results or RESULTS)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
