"""CPU seconds of 1000 environment steps, beside other libraries, and a floor of matrix products.

    python examples/benchmarks/speed.py --group on-policy --peers peers/bin/python
    python examples/benchmarks/speed.py --group off-policy --peers peers/bin/python

Every program trains on HalfCheetah-v5 with one thread, for a small and for a large budget; the
difference is what the steps take, without starting and evaluations. Programs take turns, so that a
machine whose speed drifts is as slow for one as for the next: read ratios. The floor is the number
of operations in the matrix products of training over the rate of a product of two 256 x 256
matrices here.

``--peers`` is the interpreter of an environment with what speed-peers.txt lists; without it only
our own programs are measured. Results go to results/speed-GROUP.json, tables to the screen.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from run import make_folder  # type: ignore[import-not-found]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diffpolicy.files import versions, write_json
from diffpolicy.trainers import METHODS, run_script

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ENV = "HalfCheetah-v5"
# Later than any budget here: evaluations are at the beginning and at the end.
NEVER = 10_000_000
PRODUCT = 256


class Program(NamedTuple):
    """What is measured.

    Attributes:
        name: in tables.
        method: of ours, or the file of another program here.
        flags: besides task, budget and evaluations.
    """

    name: str
    method: str
    flags: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it is a method of this package."""
        return not self.method.endswith(".py")

    def arguments(self, frames: int, folder: Path) -> list[str]:
        """The command line of a run of so many environment steps, without the program."""
        shared = ["--env", ENV, "--eval-every", str(NEVER), "--eval-episodes", "1"]
        words = [*shared, "--total-frames", str(frames), *self.flags]
        if self.ours:
            return [*words, "--output", str(folder / "run"), "--logger", "csv"]
        return [*words, "--seeds", "0", "--results", str(folder)]


class Group(NamedTuple):
    """Programs that do the same, the first one being what the others are compared with.

    Attributes:
        programs: to measure.
        budgets: environment steps of the small and of the large run.
    """

    programs: tuple[Program, ...]
    budgets: tuple[int, int]


_RANDOM = ("--learning-starts", "1000")
GROUPS = {
    # 16 environments of 128 steps, 10 epochs of 8 minibatches, two layers of 64.
    "on-policy": Group(
        (
            Program("SB3 PPO", "sb3_ppo.py"),
            Program("Gaussian PPO", "gaussian_ppo"),
            Program("Gaussian PPO, EnvPool", "gaussian_ppo", ("--env-source", "envpool")),
            Program("DiffPPO", "diffppo"),
            Program("DiffPPO, EnvPool", "diffppo", ("--env-source", "envpool")),
        ),
        (2048, 5 * 2048),
    ),
    # One environment, one update for each step after the random ones, batches of 256.
    "off-policy": Group(
        (
            Program("SB3 SAC", "sb3_sac.py"),
            Program("sbx SAC", "sbx_sac.py"),
            Program("Gaussian SAC", "sac", (*_RANDOM, "--batch-size", "256")),
            Program("DiffSAC", "diffsac", _RANDOM),
            Program("DIME", "dime", _RANDOM),
        ),
        (1400, 2400),
    ),
}


class MatrixProducts(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, those of backward passes included.

    Attributes:
        operations: so far; a multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        return out


def operations(program: Program, budgets: tuple[int, int]) -> float:
    """Floating-point operations of the matrix products of 1000 environment steps."""
    found = []
    for frames in budgets:
        with TemporaryDirectory() as folder, MatrixProducts() as products:
            if run_script(METHODS[program.method], program.arguments(frames, Path(folder))):
                raise SystemExit(f"{program.name} failed.")
        found.append(products.operations)
    return _per_thousand(found, budgets)


def product_rate() -> float:
    """Floating-point operations per second of a product of two matrices, on one thread."""
    left, right = torch.rand(PRODUCT, PRODUCT), torch.rand(PRODUCT, PRODUCT)
    times = []
    for _ in range(500):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    # The fastest ones: the rate of a core that nothing else wants.
    return 2 * PRODUCT**3 / min(times)


def seconds(command: Sequence[str]) -> dict[str, float]:
    """Seconds of a whole program: of its CPU, in its own and in its children's, and on the wall.

    Raises:
        SystemExit: if it fails.
    """
    start, before = time.perf_counter(), os.times()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": _ONE_THREAD}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    after, wall = os.times(), time.perf_counter() - start
    cpu = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    return {"cpu": cpu, "wall": wall}


_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def measure(program: Program, frames: int, peers: str) -> dict[str, float]:
    """Seconds of one run in a new process."""
    with TemporaryDirectory() as folder:
        arguments = program.arguments(frames, Path(folder))
        if program.ours:
            words = [sys.executable, "-m", "diffpolicy", "train", program.method]
        else:
            words = [peers, str(HERE / program.method)]
        return seconds([*words, *arguments])


def compare(
    group: Group, rounds: int, peers: str, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure all programs in turns; a row for each with medians over the rounds."""
    runs: dict[str, list[list[dict[str, float]]]] = {p.name: [] for p in group.programs}
    for number in range(rounds):
        for program in group.programs:
            pair = [measure(program, frames, peers) for frames in group.budgets]
            runs[program.name].append(pair)
            cpu = _per_thousand([run["cpu"] for run in pair], group.budgets)
            report(f"round {number + 1}, {program.name}: {cpu:.2f} CPU seconds")
    return [_row(program, runs[program.name], group.budgets) for program in group.programs]


def _row(
    program: Program, pairs: list[list[dict[str, float]]], budgets: tuple[int, int]
) -> dict[str, Any]:
    row: dict[str, Any] = {"program": program.name, "flags": list(program.flags)}
    for kind in ("cpu", "wall"):
        each = [_per_thousand([run[kind] for run in pair], budgets) for pair in pairs]
        row[f"{kind}_seconds"] = [round(value, 3) for value in each]
    return row


def _per_thousand(found: Sequence[float], budgets: tuple[int, int]) -> float:
    """What 1000 steps take, of two runs."""
    return 1000 * (found[1] - found[0]) / (budgets[1] - budgets[0])


def table(content: dict[str, Any]) -> str:
    """Markdown: medians, and ratios to the first program, the medians of those of the rounds."""
    lines = [
        "| 1000 environment steps | CPU seconds | wall seconds | of the first row's CPU seconds "
        "| floor of matrix products | floor / CPU seconds |",
        "|---" * 6 + "|",
    ]
    first = content["rows"][0]["cpu_seconds"]
    for row in content["rows"]:
        cpu, wall = (statistics.median(row[f"{kind}_seconds"]) for kind in ("cpu", "wall"))
        ratio = statistics.median(
            own / other for own, other in zip(row["cpu_seconds"], first, strict=True)
        )
        floor = row.get("floor_seconds")
        described = "" if floor is None else f"{floor:.2f}"
        share = "" if floor is None else f"{floor / cpu:.0%}"
        lines.append(
            f"| {row['program']} | {cpu:.2f} | {wall:.2f} | x {ratio:.2f} | {described} | {share} |"
        )
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group", choices=sorted(GROUPS), required=True)
    parser.add_argument("--programs", nargs="+", help="some of the group's, by name")
    parser.add_argument("--peers", help="Python of an environment with the other libraries")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budgets", type=int, nargs=2, help="environment steps of the two runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    args = parser.parse_args(argv)
    group = GROUPS[args.group]
    names = [program.name for program in group.programs]
    unknown = sorted(set(args.programs or ()) - set(names))
    if unknown:
        parser.error(f"--programs has {', '.join(unknown)}; choose from {', '.join(names)}.")
    wanted = args.programs or names
    programs = [p for p in group.programs if p.name in wanted and (p.ours or args.peers)]
    if not programs:
        parser.error("--programs leaves nothing to measure without --peers.")
    budgets = tuple(args.budgets or group.budgets)
    if args.rounds < 1 or budgets[0] >= budgets[1]:
        parser.error("--rounds must be at least 1, and the second of --budgets the larger one.")
    make_folder(parser, args.results)
    args.chosen = Group(tuple(programs), (budgets[0], budgets[1]))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    group: Group = args.chosen
    rows = compare(group, args.rounds, args.peers, lambda line: print(line, flush=True))
    rate = product_rate()
    for program, row in zip(group.programs, rows, strict=True):
        if program.ours:
            row["operations"] = operations(program, group.budgets)
            row["floor_seconds"] = round(row["operations"] / rate, 3)
    content = {
        "env": ENV,
        "budgets": list(group.budgets),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, one thread",
        "operations_per_second": round(rate),
        "versions": {**versions(), **_peer_versions(args.peers)},
        "rows": rows,
    }
    write_json(args.results / f"speed-{args.group}.json", content)
    print(table(content))


def _peer_versions(peers: str | None) -> dict[str, str]:
    """Versions of the other libraries that are there."""
    if peers is None:
        return {}
    code = (
        "import json, importlib.metadata as m\n"
        "names = {d.metadata['Name'].lower().replace('_', '-') for d in m.distributions()}\n"
        "wanted = ('stable-baselines3', 'sbx-rl', 'jax')\n"
        "print(json.dumps({n: m.version(n) for n in wanted if n in names}))\n"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([peers, "-c", code], text=True))
    return found


if __name__ == "__main__":
    main()
