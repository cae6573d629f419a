"""The training scripts with worker processes, on this machine and on a Ray cluster."""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Main = Callable[[list[str]], int]
ReadRows = Callable[[Path], list[dict[str, str]]]

# An iteration is 8 steps of each of the two environments, an evaluation 10 steps of another one.
ON_POLICY_OPTIONS = {
    "--num-envs": 2,
    "--rollout-steps": 8,
    "--epochs": 1,
    "--denoising-steps": 2,
    "--actor-hidden-sizes": 8,
    "--critic-hidden-sizes": 8,
    "--eval-episodes": 1,
    "--max-episode-steps": 10,
    "--checkpoint-every": 16,
    "--logger": "csv",
}
OFF_POLICY_OPTIONS = {
    "--num-envs": 2,
    "--learning-starts": 20,
    "--iteration-frames": 10,
    "--total-frames": 40,
    "--batch-size": 16,
    "--denoising-steps": 2,
    "--actor-hidden-sizes": 8,
    "--critic-hidden-sizes": 8,
    "--eval-episodes": 1,
    "--max-episode-steps": 10,
    "--env": "Pendulum-v1",
    "--logger": "csv",
}
ON_POLICY, OFF_POLICY = (
    [str(word) for option in options.items() for word in option]
    for options in (ON_POLICY_OPTIONS, OFF_POLICY_OPTIONS)
)
ONE_WORKER = ["--num-workers", "1", "--restart-workers", "1"]
TWO_WORKERS = ["--num-workers", "2", "--restart-workers", "1"]


@pytest.fixture
def ray_ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray, whose cluster ends with the test instead of with the process."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_workers_that_raise(
    load_main: Callable[[str], Main],
    faulty_envs: str,
    tmp_path: Path,
    read_rows: ReadRows,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All environments fail at step 25: the rollout is collected again once, then the run ends."""
    main, output = load_main("diffppo_lightning"), tmp_path / "run"
    env = ["--env", f"{faulty_envs}:FaultyLater-v0", "--total-frames", "640"]
    flags = [*ON_POLICY, *ONE_WORKER, "--collector", "process", "--output", str(output)]
    assert main([*env, *flags]) == 1
    error = capsys.readouterr().err
    assert error.count("the workers are started anew (1 of 1 times)") == 1
    assert f"training failed: collecting from --env {faulty_envs}:FaultyLater-v0 failed" in error
    assert "worker 1 of 1 raised ArithmeticError: the simulator broke at step 25\nTrace" in error
    assert 'faulty_envs.py", line' in error
    # three iterations before each fault, and nothing between them was lost
    assert [int(row["frames"]) for row in read_rows(output)] == [16, 32, 48, 64, 80, 96]
    last = output / "checkpoints" / "last.ckpt"
    assert f"The last good checkpoint is {last}." in error
    assert not multiprocessing.active_children()
    # and the run goes on from there without workers
    more = ["--resume", str(last), "--collector", "local", "--total-frames", "112"]
    assert main(more) == 0
    assert json.loads((output / "results.json").read_text())["env_steps"] == 112


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["process", "ray"])
def test_off_policy(
    load_main: Callable[[str], Main], ray_ended: Any, tmp_path: Path, backend: str
) -> None:
    """Random steps of the method's own, then the policy; with one and the same result."""
    main, output = load_main("dime_lightning"), tmp_path / "run"
    handler = signal.getsignal(signal.SIGTERM)
    assert main([*OFF_POLICY, *TWO_WORKERS, "--collector", backend, "--output", str(output)]) == 0
    assert signal.getsignal(signal.SIGTERM) == handler
    results = json.loads((output / "results.json").read_text())
    assert (results["env_steps"], results["config"]["collector"]) == (40, backend)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_two_ranks_with_a_worker_each(
    load_main: Callable[[str], Main], tmp_path: Path, read_rows: ReadRows
) -> None:
    main, output = load_main("diffppo_lightning"), tmp_path / "run"
    flags = ["--cpu-ranks", "2", "--collector", "process", "--num-workers", "1"]
    run = ["--env", "Pendulum-v1", "--total-frames", "64", "--output", str(output)]
    assert main([*ON_POLICY, *flags, *run]) == 0
    assert [int(row["frames"]) for row in read_rows(output)] == [32, 64]


@pytest.mark.slow
def test_workers_that_raise_on_ray(
    load_main: Callable[[str], Main],
    ray_ended: Any,
    faulty_envs: str,
    tmp_path: Path,
    read_rows: ReadRows,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main, output = load_main("diffppo_lightning"), tmp_path / "run"
    env = ["--env", f"{faulty_envs}:FaultyLater-v0", "--total-frames", "640"]
    flags = [*ON_POLICY, *TWO_WORKERS, "--collector", "ray", "--output", str(output)]
    assert main([*env, *flags]) == 1
    error = capsys.readouterr().err
    assert error.count("the workers are started anew (1 of 1 times)") == 1
    assert "of 2 raised ArithmeticError: the simulator broke at step 25\n" in error
    assert [int(row["frames"]) for row in read_rows(output)] == [16, 32, 48, 64, 80, 96]


def test_an_environment_in_this_process_that_raises(
    load_main: Callable[[str], Main],
    faulty_envs: str,
    tmp_path: Path,
    read_rows: ReadRows,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main, output = load_main("diffppo_lightning"), tmp_path / "run"
    name = f"{faulty_envs}:FaultyLater-v0"
    assert main([*ON_POLICY, "--env", name, "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert f"training failed: collecting from --env {name} failed: the environment or" in error
    assert "raised ArithmeticError: the simulator broke at step 25\nTraceback" in error
    assert [int(row["frames"]) for row in read_rows(output)] == [16, 32, 48]
    assert (output / "checkpoints" / "frames_0000000048.ckpt").exists()


def test_an_environment_that_raises_in_an_evaluation(
    load_main: Callable[[str], Main],
    faulty_envs: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"{faulty_envs}:Faulty-v0"
    run = ["--env", name, "--output", str(tmp_path / "run")]
    assert load_main("diffppo_lightning")([*ON_POLICY, *run]) == 1
    error = capsys.readouterr().err
    assert f"the evaluation after 0 environment steps failed: --env {name} or the policy" in error
    assert "raised ArithmeticError: the simulator broke at step 3\nTraceback" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--collector", "process"], "--collector process needs --num-workers of at least 1, got"),
        (["--num-workers", "2"], "--num-workers 2 needs --collector process or ray"),
        (["--restart-workers", "1"], "--restart-workers 1 needs --collector process or ray"),
        (
            ["--collector", "process", "--num-workers", "3"],
            "--num-envs must be a multiple of --num-workers 3, got 2; try 3",
        ),
    ],
)
def test_wrong_flags(
    load_main: Callable[[str], Main],
    error_line: Callable[[Main, list[str]], str],
    flags: list[str],
    message: str,
) -> None:
    assert message in error_line(load_main("diffppo_lightning"), [*ON_POLICY, *flags])


def test_ray_is_not_installed(
    load_main: Callable[[str], Main],
    error_line: Callable[[Main, list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(
        "collectors.collection.ray_workers.importlib.util.find_spec", lambda name: None
    )
    output = tmp_path / "run"
    flags = ["--collector", "ray", "--num-workers", "2", "--output", str(output)]
    line = error_line(load_main("diffppo_lightning"), [*ON_POLICY, *flags])
    assert "--collector ray needs the package ray" in line
    assert "diffpolicy[ray]" in line
    assert not output.exists()
