"""``diffpolicy plot RUN...``: curves with bands, and a table of the final returns."""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpolicy.cli.arguments import Arguments

_DESCRIPTION = """\
Draw the evaluation returns of runs, and print a table of the last ones. Runs that differ in their
seed alone are one curve, with a 95 % confidence band; the legend says in what others differ.

  diffpolicy plot runs/dime-seed0 runs/dime-seed1 runs/sac-seed0 --output curves.png"""
# What makes no difference to the results of a run, or is said elsewhere.
_NEVER_NAMED = {
    "seed",
    "output",
    "resume",
    "env",
    "checkpoint_every",
    "logger",
    "checkpoint_replay",
}


def main(words: list[str]) -> int:
    """Draw; returns the exit code."""
    parser = Arguments("plot", _DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="picture: .png, .pdf or .svg (default: curves.png)",
    )
    args = parser.parse_args(words)

    # Here, because these import matplotlib.
    from diffpolicy.cli.curves import curve_of, draw, over_seeds, read_results, table

    results = [read_results(run) for run in args.runs]
    groups = defaultdict(list)
    for label, run, result in zip(labels(results), args.runs, results, strict=True):
        groups[label].append(curve_of(result, run))
    try:
        curves = {label: over_seeds(group, label) for label, group in groups.items()}
        tasks = dict.fromkeys(str(result["env"]) for result in results)
        draw(curves, ", ".join(tasks), args.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{table(curves, 'run')}\n\nthe curves are in {args.output}\n")
    return 0


def labels(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each run: its method, and whatever options differ between runs of this method.

    Runs of several environments are told apart by these, too.
    """
    several = len({result["env"] for result in results}) > 1
    found = []
    for result in results:
        method = result["method"]
        same = [other["config"] for other in results if other["method"] == method]
        config = result["config"]
        differing = [
            f"{name} {_words(config[name])}"
            for name in sorted(config.keys() - _NEVER_NAMED)
            if any(other.get(name) != config[name] for other in same)
        ]
        task = [f"on {result['env']}"] if several else []
        found.append(", ".join([" ".join([method, *task]), *differing]))
    return found


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
