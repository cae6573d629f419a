"""How runs are started and stopped from outside: SIGTERM, torchrun, Slurm's srun."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffpolicy.trainers.io.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "diffppo_lightning.py"
# 128 environment steps in an iteration of a rank.
SMALL_OPTIONS = {
    "--num-envs": 4,
    "--rollout-steps": 32,
    "--epochs": 2,
    "--minibatch-size": 128,
    "--denoising-steps": 2,
    "--actor-hidden-sizes": 16,
    "--critic-hidden-sizes": 16,
    "--eval-episodes": 1,
    "--eval-every": 100_000,
    "--logger": "csv",
}
SMALL = [str(word) for option in SMALL_OPTIONS.items() for word in option]
TIMEOUT = 240

Main = Callable[[list[str]], int]
AfterIterations = Callable[[pytest.MonkeyPatch, int, Callable[[], Any]], None]


@pytest.fixture(scope="module")
def main(load_main: Callable[[str], Main]) -> Main:
    return load_main("diffppo_lightning")


# ---------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_a_termination_ends_a_run_with_a_checkpoint_and_exit_code_0(
    main: Main,
    after_iterations: AfterIterations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    cpu_ranks: int,
    number: signal.Signals,
) -> None:
    def terminate_twice() -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)

    output, handler = tmp_path / "run", signal.getsignal(number)
    argv = [*SMALL, "--cpu-ranks", str(cpu_ranks), "--output", str(output)]
    with monkeypatch.context() as patch:
        after_iterations(patch, 3, terminate_twice)
        assert main([*argv, "--total-frames", "100000"]) == 0
    assert signal.getsignal(number) is handler
    frames = 3 * 128 * cpu_ranks
    last = output / "checkpoints" / "last.ckpt"
    assert Checkpoint.read(last).state["frames"] == frames
    assert f"stopped; continue with --resume {last}" in capfd.readouterr().out
    # A job that is put into the queue again goes on where it was.
    again = [*argv, "--resume", "last", "--total-frames", str(frames + 1)]
    assert main(again) == 0
    assert Checkpoint.read(last).state["frames"] == frames + 128 * cpu_ranks


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_sigusr2_makes_a_checkpoint_and_the_run_goes_on(
    main: Main,
    after_iterations: AfterIterations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpu_ranks: int,
) -> None:
    output, total = tmp_path / "run", 4 * 128 * cpu_ranks
    argv = [*SMALL, "--cpu-ranks", str(cpu_ranks), "--output", str(output)]
    after_iterations(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGUSR2))
    assert main([*argv, "--total-frames", str(total), "--checkpoint-every", "100000"]) == 0
    saved = [path.name for path in (output / "checkpoints").glob("frames_*.ckpt")]
    # One for all ranks, although each of them has asked, and that at the end of the run.
    assert sorted(saved) == [f"frames_{frames:010d}.ckpt" for frames in (total // 2, total)]


def test_sigterm_to_the_process_that_was_started_reaches_its_ranks(
    main: Main, after_iterations: AfterIterations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, output = os.getpid(), tmp_path / "run"
    after_iterations(monkeypatch, 2, lambda: os.kill(started, signal.SIGTERM))
    argv = [*SMALL, "--cpu-ranks", "2", "--total-frames", "30000", "--output", str(output)]
    assert main(argv) == 0
    # The signal takes its time, but not that of the whole run.
    frames = Checkpoint.read(output / "checkpoints" / "last.ckpt").state["frames"]
    assert 2 * 256 <= frames < 30_000


# ---------------------------------------------------------------------------------------------
# Launchers

TRAIN = [*SMALL, "--total-frames", "512"]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def own_ranks(main: Main, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The metrics of two ranks that the library has started."""
    output = tmp_path_factory.mktemp("own") / "run"
    assert main([*TRAIN, "--cpu-ranks", "2", "--output", str(output)]) == 0
    return (output / "metrics.csv").read_text()


def check_run(output: Path, metrics: str, said: str) -> None:
    """One process spoke, and the run is the same as another."""
    assert said.count(f"finished; results are in {output}") == 1, said
    assert (output / "metrics.csv").read_text() == metrics
    assert Checkpoint.read(output / "checkpoints" / "last.ckpt").state["frames"] == 512


def torchrun_variables(nodes: int, ranks: int) -> list[dict[str, str]]:
    """What torchrun sets for each of its processes."""
    common = {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    common |= {"WORLD_SIZE": str(nodes * ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [
        {**common, "RANK": str(i), "LOCAL_RANK": str(i % ranks), "GROUP_RANK": str(i // ranks)}
        for i in range(nodes * ranks)
    ]


def srun_variables(nodes: int, ranks: int) -> list[dict[str, str]]:
    """What srun sets for each of its processes."""
    common = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1"}
    common |= {"SLURM_NTASKS": str(nodes * ranks), "SLURM_STEP_NUM_TASKS": str(nodes * ranks)}
    common |= {"SLURM_NNODES": str(nodes), "SLURM_NTASKS_PER_NODE": str(ranks)}
    # One machine cannot tell two runs apart by the number of the job.
    common["MASTER_PORT"] = free_port()
    return [
        {
            **common,
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i % ranks),
            "SLURM_NODEID": str(i // ranks),
        }
        for i in range(nodes * ranks)
    ]


@pytest.mark.parametrize(
    ("variables", "nodes"),
    [(torchrun_variables, 1), (torchrun_variables, 2), (srun_variables, 1), (srun_variables, 2)],
)
def test_ranks_of_a_launcher_make_the_same_run(
    main: Main,
    own_ranks: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    variables: Callable[[int, int], list[dict[str, str]]],
    nodes: int,
) -> None:
    """Processes with the variables of a launcher, which costs less than to start it."""
    output, ranks = tmp_path / "run", 2 // nodes
    capfd.readouterr()
    train = [*TRAIN, "--num-nodes", str(nodes), "--cpu-ranks", str(ranks), "--output", str(output)]

    def rank(environment: dict[str, str]) -> None:
        os.environ.update(environment)
        sys.exit(main(train))

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank, args=(own,)) for own in variables(nodes, ranks)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
    finally:
        for process in processes:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    check_run(output, own_ranks, capfd.readouterr().out)


def start_torchrun(folder: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code and console of each; none of them outlives the test."""
    try:
        consoles = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *console) for process, console in zip(processes, consoles, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun(own_ranks: str, tmp_path: Path, nodes: int) -> None:
    output, port, ranks = tmp_path / "run", free_port(), str(2 // nodes)
    train = [str(SCRIPT), *TRAIN, "--num-nodes", str(nodes), "--cpu-ranks", ranks]
    launch = [f"--nnodes={nodes}", f"--nproc-per-node={ranks}", f"--master-port={port}"]
    launch.append("--master-addr=127.0.0.1")
    ended = finish(
        [
            start_torchrun(
                tmp_path, *launch, f"--node-rank={node}", *train, "--output", str(output)
            )
            for node in range(nodes)
        ]
    )
    assert [code for code, *_ in ended] == [0] * nodes, ended
    check_run(output, own_ranks, "".join(out for _, out, _ in ended))


# The second rank, and no other process, hears of SIGTERM in its third iteration.
TERMINATED_SCRIPT = """
import os, signal, sys
import diffpolicy.trainers.loops.on_policy as on_policy
from diffpolicy.trainers import METHODS, run_script

episode_stats, calls = on_policy.episode_stats, []

def terminated(rollout):
    calls.append(rollout)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getppid() if "--agent" in sys.argv else os.getpid(), signal.SIGTERM)
    return episode_stats(rollout)

on_policy.episode_stats = terminated

if __name__ == "__main__":
    argv = [word for word in sys.argv[1:] if word != "--agent"]
    sys.exit(run_script(METHODS["diffppo"], argv))
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["rank", "agent"])
def test_sigterm_under_torchrun(tmp_path: Path, to: str) -> None:
    script, output = tmp_path / "train.py", tmp_path / "run"
    script.write_text(TERMINATED_SCRIPT)
    train = [str(script), *SMALL, "--cpu-ranks", "2", "--total-frames", "30000"]
    train += ["--output", str(output), *(["--agent"] if to == "agent" else [])]
    agent = start_torchrun(tmp_path, "--standalone", "--nproc-per-node=2", *train)
    ((code, out, err),) = finish([agent])
    frames = Checkpoint.read(output / "checkpoints" / "last.ckpt").state["frames"]
    assert 3 * 256 <= frames < 30_000, err
    assert "stopped; continue with --resume" in out, err
    # The ranks exit with 0; torchrun itself reports a signal that it was sent.
    assert (code == 0) == (to == "rank"), err


# ---------------------------------------------------------------------------------------------
# Scaling


@pytest.mark.slow
def test_the_scaling_benchmark_measures_every_run(
    load_main: Callable[[str], Callable[[list[str]], None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    results = tmp_path / "scaling.json"
    argv = ["--methods", "gaussian_ppo", "--env", "InvertedPendulum-v5", "--iterations", "2"]
    load_main("benchmarks/scaling")([*argv, "--results", str(results)])
    speeds = json.loads(results.read_text())["speeds"]
    runs = [(speed["method"], speed["ranks"]) for speed in speeds]
    assert runs == [("gaussian_ppo", 1), ("gaussian_ppo", 2)]
    for speed in speeds:
        # 10 epochs of 8 minibatches for 16 x 128 steps of each rank.
        expected = speed["frames_per_second"] * 80 / 2048 / speed["ranks"]
        assert speed["updates_per_second"] == pytest.approx(expected)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2
    assert rows[2].startswith("| gaussian_ppo | 1 |")
    assert rows[2].endswith("| x 1.00 |")
