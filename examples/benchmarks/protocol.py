"""The protocol behind docs/results.md: its tasks, methods and seeds, and the runs that are missing.

    python examples/benchmarks/protocol.py --group on-policy --methods diffppo ppo --seeds 10 11
    python examples/benchmarks/protocol.py --list
    python examples/benchmarks/report.py --protocol

Trains what has no results yet, one run after the other, with the defaults of each method; a run
that was stopped goes on from its newest checkpoint. A run whose training fails keeps what it had
until then, marked as failed, and counts. ``--list`` prints the commands instead, with those of
Stable-Baselines3, which needs an environment of its own.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path("examples/benchmarks")
RESULTS = Path(__file__).parent / "results" / "protocol"
RUNS = Path("runs/benchmarks/protocol")
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130

#: Defaults were chosen on these tasks with these seeds, and results are of other seeds.
TUNING_TASKS = ("HalfCheetah-v5", "Hopper-v5", "dmc:cheetah-run")
TUNING_SEEDS = (0, 1, 2)
SEEDS = (10, 11, 12, 13, 14)
#: Every method is evaluated alike.
ACTING = "deterministic"

#: What tables and legends call a label.
NAMES = {
    "diffppo": "DiffPPO",
    "diffsac": "DiffSAC",
    "diffwpo": "DiffWPO",
    "diffwpo-200k": "DiffWPO, 200k steps",
    "dime": "DIME",
    "dppo": "DPPO",
    "ppo": "Gaussian PPO",
    "ppo-lr-3e-4": "Gaussian PPO, lr 3e-4",
    "sac": "Gaussian SAC",
    "sb3-ppo": "SB3 PPO",
    "sb3-sac": "SB3 SAC",
    "wpo": "Gaussian WPO",
}
# The registered method of a label that has another name.
METHOD_OF = {"dppo": "diffppo", "ppo": "gaussian_ppo", "wpo": "gaussian_wpo"}
# Flags of a label that is not its method with the defaults. DPPO: no entropy, and noise that only
# its step sizes lower.
FLAGS = {"dppo": ["--temperature", "0", "--initial-noise-scale", "1", "--final-noise-scale", "1"]}
# Labels whose runs another program makes.
OTHER_PROGRAMS = {"sb3-ppo": "sb3_ppo.py", "sb3-sac": "sb3_sac.py"}


class Task(NamedTuple):
    """A task and its budget.

    Attributes:
        env: Gymnasium id or dmc:domain-task.
        frames: environment steps.
        eval_every: environment steps between evaluations.
        suffix: of the names of results, for another budget than that of the protocol.
    """

    env: str
    frames: int
    eval_every: int
    suffix: str = ""

    def results(self, folder: Path, label: str, seed: int) -> Path:
        """The results file of a run."""
        return folder / self.env.replace(":", "-") / f"{label}{self.suffix}-seed{seed}.json"


class Group(NamedTuple):
    """Methods that are compared on the same tasks.

    Attributes:
        name: on the command line and of its pictures.
        title: of its section.
        methods: labels.
        tasks: with their budgets.
    """

    name: str
    title: str
    methods: tuple[str, ...]
    tasks: tuple[Task, ...]

    def with_frames(self, frames: int) -> "Group":
        """The same comparison with another budget on every task.

        Args:
            frames: environment steps, a multiple of 1000.
        """
        suffix = f"-{frames // 1000}k"
        tasks = tuple(
            task if task.frames == frames else task._replace(frames=frames, suffix=suffix)
            for task in self.tasks
        )
        return self._replace(name=f"{self.name}{suffix}", tasks=tasks)


_ON_POLICY = ("diffppo", "dppo", "ppo", "diffwpo", "wpo", "sb3-ppo")
_OFF_POLICY = ("dime", "diffsac", "sac", "sb3-sac")
GROUPS = (
    Group(
        "on-policy",
        "On-policy methods",
        _ON_POLICY,
        tuple(Task(env, 300_000, 50_000) for env in ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")),
    ),
    Group(
        "off-policy",
        "Off-policy methods",
        _OFF_POLICY,
        tuple(
            Task(env, 20_000, 5_000)
            for env in (
                "HalfCheetah-v5",
                "Hopper-v5",
                "Walker2d-v5",
                "dmc:cheetah-run",
                "dmc:pendulum-swingup",
            )
        ),
    ),
    Group(
        "small",
        "Off-policy methods on small tasks",
        _OFF_POLICY,
        (
            Task("Pendulum-v1", 10_000, 2_000),
            Task("InvertedDoublePendulum-v5", 30_000, 5_000),
            Task("Reacher-v5", 50_000, 10_000),
        ),
    ),
)


def read(path: Path, task: Task) -> dict[str, Any] | None:
    """The results of a run that has ended, also by a failure; None if there is none, or a part."""
    if not path.exists():
        return None
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    ended = "failed" in results or results["env_steps"] >= task.frames
    return results if ended else None


def command(
    label: str, task: Task, seeds: Sequence[int], results: Path, *, compiled: bool = False
) -> list[str]:
    """The program of a label and its flags, for some seeds; ``compiled`` is for our own methods."""
    budget = ["--total-frames", str(task.frames), "--eval-every", str(task.eval_every)]
    common = ["--env", task.env, "--seeds", *map(str, seeds), "--results", str(results), *budget]
    if label in OTHER_PROGRAMS:
        named = ["--label", label + task.suffix] if task.suffix else []
        return [OTHER_PROGRAMS[label], *named, *common]
    method = ["--method", METHOD_OF.get(label, label), "--label", label + task.suffix]
    acting = ["--eval-policy", ACTING, *(["--compile"] if compiled else [])]
    return ["run.py", *method, *common, *acting, *FLAGS.get(label, [])]


def train(words: Sequence[str], runs: Path) -> int:
    """Train one run of run.py; returns its exit code."""
    # Here, because it imports torch, and the report needs the data of this module only.
    from run import main as run  # type: ignore[import-not-found]

    return int(run([*words, "--runs", str(runs), "--resume", "last"]))


def keep_failure(path: Path, runs: Path, code: int) -> bool:
    """Keep what a failed run had, marked as failed; returns whether it had anything."""
    from run import keep

    output = runs / path.parent.name / path.stem / "results.json"
    if not output.exists():
        return False
    keep(output, path.parent, path.stem)
    failed = f"training ended with exit code {code}"
    content = {**json.loads(path.read_text(encoding="utf-8")), "failed": failed}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return True


Planned = tuple[str, Task, list[int]]


def planned(args: argparse.Namespace) -> Iterator[Planned]:
    """Labels, tasks and the seeds without results, of what the command line chooses."""
    for group in args.group:
        for task in group.tasks:
            if args.envs and task.env not in args.envs:
                continue
            for label in group.methods:
                seeds = [
                    s for s in args.seeds if not read(task.results(args.results, label, s), task)
                ]
                if seeds and label in args.methods:
                    yield label, task, seeds


def run_all(runs: Sequence[Planned], args: argparse.Namespace) -> int:
    """Train what is planned, until one run is stopped; returns the exit code."""
    for label, task, seeds in runs:
        if label in OTHER_PROGRAMS:
            print(f"{label} on {task.env}: has its own environment; --list prints the command")
            continue
        for seed in seeds:
            path = task.results(args.results, label, seed)
            words = command(label, task, [seed], args.results, compiled=args.compile)[1:]
            code = train(words, args.runs)
            if code == EXIT_FAILED and keep_failure(path, args.runs, code):
                print(f"{path.stem} on {task.env}: failed, and is kept as that")
            elif code or read(path, task) is None:
                print(f"{path.stem} on {task.env}: not finished; the same command goes on")
                return code
    return 0


def short(path: Path) -> Path:
    """A path as it is called from the working directory."""
    whole, here = path.resolve(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else path


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [group.name for group in GROUPS]
    labels = list(dict.fromkeys(label for group in GROUPS for label in group.methods))
    found.add_argument("--group", choices=names, nargs="+", default=names)
    found.add_argument("--methods", choices=labels, nargs="+", default=labels)
    found.add_argument("--envs", nargs="+", help="some of the tasks (default: all of the group)")
    found.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    found.add_argument(
        "--total-frames",
        type=int,
        help="another budget, with results of their own names; 100000 is that of published "
        "off-policy results",
    )
    found.add_argument("--list", action="store_true", help="print the commands of what is missing")
    found.add_argument("--compile", action="store_true", help="compile the updates")
    found.add_argument("--runs", type=Path, default=RUNS, help="output folders")
    found.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with groups in the place of their names.

    Raises:
        SystemExit: for what no group has, and a budget that no name can say.
    """
    command_line = parser()
    args = command_line.parse_args(argv)
    args.group = [group for group in GROUPS if group.name in args.group]
    known = {
        "--methods": {label for group in args.group for label in group.methods},
        "--envs": {task.env for group in args.group for task in group.tasks},
    }
    for flag, names in known.items():
        chosen = getattr(args, flag.strip("-")) or names
        if not names.intersection(chosen):
            command_line.error(f"{flag} must name some of {', '.join(sorted(names))}.")
    if args.total_frames is not None:
        if args.total_frames < 1000 or args.total_frames % 1000:
            command_line.error(
                f"--total-frames must be a multiple of 1000, got {args.total_frames}."
            )
        args.group = [group.with_frames(args.total_frames) for group in args.group]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or list, what is missing; returns the exit code."""
    args = parse(argv)
    runs = list(planned(args))
    if not args.list:
        try:
            return run_all(runs, args)
        except KeyboardInterrupt:  # the run has written its checkpoint
            return EXIT_INTERRUPTED
    for label, task, seeds in runs:
        program, *flags = command(label, task, seeds, short(args.results), compiled=args.compile)
        print(shlex.join(["python", str(FOLDER / program), *flags]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
