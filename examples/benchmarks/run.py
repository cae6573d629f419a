"""Train a method on a task with several seeds and keep one results file per run.

    python examples/benchmarks/run.py --method diffppo --env HalfCheetah-v5 --seeds 0 1 2 3 4

Flags that are not listed by --help go to the training script unchanged, for example
``--total-frames 300000 --eval-every 20000``.
"""

import argparse
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from diffpolicy.trainers import (
    DiffPPOConfig,
    DIMEConfig,
    GaussianPPOConfig,
    diffppo_module,
    dime_module,
    gaussian_ppo_module,
    run_script,
)

METHODS: dict[str, Callable[[Sequence[str]], int]] = {
    "diffppo": partial(run_script, DiffPPOConfig, diffppo_module),
    "dime": partial(run_script, DIMEConfig, dime_module),
    "ppo": partial(run_script, GaussianPPOConfig, gaussian_ppo_module),
}
RESULTS = Path(__file__).parent / "results"


def run_seed(seed: int, args: argparse.Namespace, flags: list[str]) -> int:
    """Train one seed and copy its results file; returns the exit code."""
    name = f"{args.label or args.method}-seed{seed}"
    env = args.env.replace(":", "-")
    output = args.runs / env / name
    argv = ["--env", args.env, "--seed", str(seed), "--output", str(output), *flags]
    code = METHODS[args.method](argv)
    if code == 0:
        folder = args.results / env
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(output / "results.json", folder / f"{name}.json")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run all seeds and return the first exit code that is not 0, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=sorted(METHODS), required=True)
    parser.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium id or dmc:domain-task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--label", help="name of the results (default: the method)")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"), help="output folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results.json is kept")
    args, flags = parser.parse_known_args(argv)
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, got {args.workers}.")
    task = partial(run_seed, args=args, flags=flags)
    # A new process for every run: none inherits another's random state or compiled code.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, max_tasks_per_child=1) as pool:
        codes = list(pool.map(task, args.seeds))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
