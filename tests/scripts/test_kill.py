"""kill -9 at any moment leaves a run that goes on as if nothing had happened."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_methods import small_options, words

from diffpolicy.trainers import METHODS, prepare, train
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.io.files import read_plain

ROOT = Path(__file__).resolve().parents[2]
# Trains as the scripts in examples/ do; not every method has one.
PROGRAM = "import sys; from diffpolicy.trainers import METHODS, run_script; "
PROGRAM += "sys.exit(run_script(METHODS[sys.argv[1]], sys.argv[2:]))"
INTERVAL = 20
ANY: dict[str, Any] = {
    "num_envs": 4,
    "max_episode_steps": 7,
    "checkpoint_every": INTERVAL,
    "eval_episodes": 1,
}
OF_KIND: dict[str, dict[str, Any]] = {
    # Runs of all lengths agree: the learning rate must not fall towards the end.
    "on-policy": {"rollout_steps": INTERVAL // 4, "epochs": 1, "lr_schedule": "constant"},
    "off-policy": {
        "learning_starts": INTERVAL,
        "iteration_frames": INTERVAL,
        "updates_per_step": 0.05,
        "batch_size": 4,
    },
}
TOTAL = 3_000


def options(name: str, output: Path, **changes: Any) -> dict[str, Any]:
    method = METHODS[name]
    given = {**ANY, **OF_KIND[method.kind], "output": str(output), **changes}
    return small_options(method, **given)


def command(name: str, output: Path, *flags: str) -> list[str]:
    given = options(name, output, eval_every=10 * INTERVAL, total_frames=TOTAL)
    return [sys.executable, "-c", PROGRAM, name, *words(METHODS[name], given), *flags]


def start(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as file:
        return subprocess.Popen(argv, env=environment, stdout=file, stderr=file)


def steps_written(output: Path) -> int:
    """Environment steps of the last whole row of metrics.csv."""
    path = output / "metrics.csv"
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return int(lines[-1].partition(",")[0]) if len(lines) > 1 else 0


def wait_until(process: subprocess.Popen[bytes], done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert process.poll() is None, "the script has ended by itself"
        assert time.monotonic() < deadline, "the script does not get on"
        time.sleep(0.002)


def half_written(folder: Path) -> bool:
    """Whether a checkpoint was being written when the run was killed."""
    known = {path.stem for path in folder.glob("frames*.ckpt")}
    replays = {path.name.partition("-")[0] for path in folder.glob("*.replay")}
    last = Checkpoint.read(folder / "last.ckpt").state["frames"]
    newest = max([int(name[7:]) for name in known], default=0)
    return any(folder.rglob(".*.tmp")) or bool(replays - known) or newest != last


# One method of each kind: how a run is written does not depend on the method.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffppo", "dime"])
def test_kill_9_at_random_moments_loses_one_interval_at_most(name: str, tmp_path: Path) -> None:
    output, log, draw = tmp_path / "run", tmp_path / "log", random.Random(0)
    during_writes = 0
    saved = 0
    for _ in range(20):
        process = start(command(name, output, "--resume", "last"), log)
        goal = saved + INTERVAL * draw.randint(1, 5)
        wait_until(process, lambda frames=goal: steps_written(output) >= frames)
        # An iteration takes about a tenth of a second, most of it writing.
        time.sleep(draw.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        folder = output / "checkpoints"
        state = Checkpoint.read(folder / "last.ckpt").state
        assert state["frames"] >= saved
        saved = state["frames"]
        assert steps_written(output) - saved <= INTERVAL
        if state["replay"] is not None:
            read_plain(folder / state["replay"] / "rank0.pt")
        during_writes += half_written(folder)
    print(f"{during_writes} of 20 kills came while a checkpoint was being written")
    process = start(command(name, output, "--resume", "last"), log)
    assert process.wait(300) == 0
    # All runs but the first went on exactly.
    text = log.read_text()
    assert text.count("there is no run in") == 1
    assert "warning: --resume" not in text
    straight = tmp_path / "straight"
    assert start(command(name, straight), log).wait(300) == 0
    assert (output / "metrics.csv").read_bytes() == (straight / "metrics.csv").read_bytes()
    states = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (output, straight)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def config(name: str, output: Path, **changes: Any) -> Any:
    # The last iteration of a run is evaluated, so all are: runs of all lengths agree.
    return METHODS[name].config(**options(name, output, eval_every=INTERVAL, **changes))


def train_and_die(name: str, output: Path, deadly: int, calls: Any) -> None:
    """Resume for one more checkpoint; SIGKILL before the ``deadly``-th call that changes files."""

    def counted(call: Callable[..., Any], *, halfway: bool = False) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            calls.value += 1
            if calls.value == deadly:
                if halfway:
                    args[1].write(b"PK\x03\x04 and no more")
                    args[1].flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return count

    for call in ("replace", "fsync", "link", "mkdir", "rmdir", "unlink"):
        setattr(os, call, counted(getattr(os, call)))
    torch.save = counted(torch.save, halfway=True)
    train(prepare(config(name, output, resume="last", total_frames=4 * INTERVAL)))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_kill_9_at_every_step_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    base, straight = tmp_path / "base", tmp_path / "straight"
    assert train(prepare(config(name, base, total_frames=3 * INTERVAL)))
    assert train(prepare(config(name, straight, total_frames=5 * INTERVAL)))
    context = multiprocessing.get_context("fork")
    found = []
    for deadly in range(1, 1_000):
        output, calls = tmp_path / "run", context.Value("i", 0)
        shutil.copytree(base, output)
        child = context.Process(target=train_and_die, args=(name, output, deadly, calls))
        child.start()
        child.join(120)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        frames = Checkpoint.read(output / "checkpoints" / "last.ckpt").state["frames"]
        found.append(frames)
        run = prepare(config(name, output, resume="last", total_frames=5 * INTERVAL))
        assert run.frames == frames
        assert train(run)
        assert (output / "metrics.csv").read_bytes() == (straight / "metrics.csv").read_bytes()
        shutil.rmtree(output)
    print(f"killed before each of {len(found)} calls that change files")
    assert len(found) > 10
    assert set(found) == {3 * INTERVAL, 4 * INTERVAL}
    assert found == sorted(found)
