"""Frames and updates per second of one and of several ranks on the CPU, one thread each.

    python examples/benchmarks/scaling.py

Every rank has the same number of environments and the same batch size, whatever their number: R
ranks make R times the environment steps, and each update is on R times the rows. Speeds are medians
over iterations, without the first and without evaluations.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run import RESULTS, make_folder  # type: ignore[import-not-found]

from diffpolicy.trainers import METHODS, OffPolicyConfig, run_script
from diffpolicy.trainers.io.files import versions

# Environment steps of each rank, off-policy.
RANDOM_FRAMES = 1000
ITERATION_FRAMES = 200

Speed = dict[str, Any]


def flags(method: str, env: str, ranks: int, iterations: int) -> list[str]:
    """The command line of a run with so many iterations and as few evaluations as there can be."""
    config_class: Any = METHODS[method].config
    given = {"--env": env, "--cpu-ranks": ranks, "--eval-episodes": 1, "--logger": "csv"}
    if issubclass(config_class, OffPolicyConfig):
        given |= {"--learning-starts": RANDOM_FRAMES, "--iteration-frames": ITERATION_FRAMES}
        frames = RANDOM_FRAMES + ITERATION_FRAMES * iterations
    else:
        frames = config_class(env=env).rollout_frames * iterations
    frames *= ranks
    given |= {"--total-frames": frames, "--eval-every": frames, "--checkpoint-every": frames}
    return [str(word) for item in given.items() for word in item]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measure(method: str, env: str, ranks: int, iterations: int, folder: Path) -> Speed:
    """Train for some iterations and read the speeds."""
    output = folder / f"{method}-{ranks}"
    argv = [*flags(method, env, ranks, iterations), "--output", str(output)]
    if run_script(METHODS[method], argv):
        raise SystemExit(f"{method} on {ranks} rank(s) failed.")
    frames = [float(row["frames_per_second"]) for row in read_csv(output / "timing.csv")]
    metrics = read_csv(output / "metrics.csv")
    steps = int(metrics[-1]["frames"]) - int(metrics[-2]["frames"])
    updates = [float(row["updates"]) for row in metrics]
    per_second = [u * f / steps for u, f in zip(updates, frames, strict=True)]
    return {
        "method": method,
        "ranks": ranks,
        "frames_per_second": statistics.median(frames[1:]),
        "updates_per_second": statistics.median(per_second[1:]),
    }


def table(speeds: list[Speed]) -> str:
    """Markdown, with speeds relative to one rank of the same method."""
    lines = ["| method | ranks | frames/s | updates/s | frames/s of one rank |", "|---" * 5 + "|"]
    alone: dict[str, float] = {}
    for speed in speeds:
        frames = speed["frames_per_second"]
        factor = frames / alone.setdefault(speed["method"], frames)
        lines.append(
            f"| {speed['method']} | {speed['ranks']} | {frames:.0f} | "
            f"{speed['updates_per_second']:.1f} | x {factor:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", nargs="+", choices=sorted(METHODS), default=["diffppo", "dime"]
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="the first one is 1")
    parser.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium id or dmc:domain-task")
    parser.add_argument("--iterations", type=int, default=6, help="of each run, at least 2")
    parser.add_argument("--results", type=Path, default=RESULTS / "scaling.json")
    args = parser.parse_args(argv)
    if args.iterations < 2 or args.ranks[0] != 1:
        parser.error("--iterations must be at least 2, and --ranks must begin with 1.")
    make_folder(parser, args.results.parent)
    with tempfile.TemporaryDirectory() as folder:
        speeds = [
            measure(method, args.env, ranks, args.iterations, Path(folder))
            for method in args.methods
            for ranks in args.ranks
        ]
    content = {"env": args.env, "cpus": os.cpu_count(), "versions": versions(), "speeds": speeds}
    args.results.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(table(speeds))


if __name__ == "__main__":
    main()
