"""Train a method on a task with several seeds and keep one results file per run.

    python examples/benchmarks/run.py --method diffppo --env HalfCheetah-v5 --seeds 0 1 2 3 4

Flags that are not listed by --help go to the training script unchanged, for example
``--total-frames 300000 --eval-every 20000``.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from diffpolicy.trainers import METHODS, run_script

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/benchmarks")


# Flags of the training script that this one gives itself, and what to give instead.
GIVEN = {"--output": "--runs, the folder of all output folders", "--seed": "--seeds"}


def run_seed(seed: int, args: argparse.Namespace, flags: list[str]) -> int:
    """Train one seed and keep its results file; returns the exit code."""
    name = f"{args.label or args.method}-seed{seed}"
    env = args.env.replace(":", "-")
    output = args.runs / env / name
    argv = ["--env", args.env, "--seed", str(seed), "--output", str(output), *flags]
    code = run_script(METHODS[args.method], argv)
    if code == 0:
        keep(output / "results.json", args.results / env, name)
    return code


def keep(results: Path, folder: Path, name: str) -> None:
    """Copy a results file to ``folder``, free of the place where this machine keeps its runs."""
    content = json.loads(results.read_text(encoding="utf-8"))
    config, output = content["config"], RUNS / folder.name / name
    config["output"] = str(output)
    if config.get("resume") is not None:
        config["resume"] = str(output / "checkpoints" / Path(config["resume"]).name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def make_folder(command_line: argparse.ArgumentParser, folder: Path) -> None:
    """Make the folder of --results before any work that it is to hold."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        command_line.error(f"--results {folder} cannot be written to: {error.strerror}.")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # A flag of the training script is none of this one's cut short.
        allow_abbrev=False,
    )
    found.add_argument("--method", choices=sorted(METHODS), required=True)
    found.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium id or dmc:domain-task")
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    found.add_argument("--label", help="name of the results (default: the method)")
    found.add_argument("--workers", type=int, default=1, help="runs at the same time")
    found.add_argument("--runs", type=Path, default=RUNS, help="output folders")
    found.add_argument("--results", type=Path, default=RESULTS, help="where results.json is kept")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run all seeds and return the first exit code that is not 0, else 0."""
    command_line = parser()
    args, flags = command_line.parse_known_args(argv)
    if args.workers < 1:
        command_line.error(f"--workers must be at least 1, got {args.workers}.")
    for flag in (word.partition("=")[0] for word in flags):
        if flag in GIVEN:
            command_line.error(f"{flag} is chosen for each run; give {GIVEN[flag]}.")
    make_folder(command_line, args.results)
    task = partial(run_seed, args=args, flags=flags)
    # A new process for every run: none inherits another's random state or compiled code.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, max_tasks_per_child=1) as pool:
        codes = list(pool.map(task, args.seeds))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
