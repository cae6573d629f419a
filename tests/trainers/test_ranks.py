"""Several ranks: who starts them, what is their own, what happens if one of them fails."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from diffpolicy.trainers import (
    METHODS,
    DiffPPOConfig,
    OnPolicyModule,
    TrainingError,
    prepare,
    train,
)
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.io.cluster import (
    announce,
    announced,
    is_first_process,
    launched_outside,
    local_rank,
)

SmallConfig = Callable[..., DiffPPOConfig]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]
Register = Callable[[type[gym.Env[Any, Any]]], str]


@pytest.fixture
def deadline() -> Iterator[None]:
    """Ranks that wait for each other for ever fail the test."""

    def expired(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the ranks hang")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
    for process in multiprocessing.active_children():
        process.kill()


# ---------------------------------------------------------------------------------------------
# Data


class Noted(OnPolicyModule):
    """Saves what is a rank's own."""

    def on_train_end(self) -> None:
        rollout = self.stream.last_rollout
        assert rollout is not None
        content = {
            "first": rollout["observation"][:, 0],
            "actions": rollout["action"][:, 0],
            "random": torch.rand(8),
        }
        torch.save(content, f"{self.config.output}/rank{self.global_rank}.pt")


def test_every_environment_of_every_rank_has_its_own_seed(small_config: SmallConfig) -> None:
    config = small_config(cpu_ranks=2, total_frames=256)
    run = prepare(config, lambda c, device: Noted(c, METHODS["diffppo"].build, device))
    assert train(run)
    ranks = [torch.load(run.output / f"rank{rank}.pt") for rank in range(2)]
    for name in ("first", "actions"):
        rows = torch.cat([rank[name] for rank in ranks])
        assert len(rows.unique(dim=0)) == len(rows) == 8, name
    assert not torch.equal(ranks[0]["random"], ranks[1]["random"])


class Uneven(gym.Env[Any, Any]):
    """Every step is worth one; how long episodes are is set on each rank."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    length = 3

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == Uneven.length, False, {}


class NoEndOnRankOne(OnPolicyModule):
    """Episodes end on rank zero only."""

    def on_fit_start(self) -> None:
        if self.global_rank == 1:
            Uneven.length = 10**9
        super().on_fit_start()


def test_episodes_that_end_on_one_rank_only_neither_hang_nor_distort_metrics(
    small_config: SmallConfig, register: Register, read_run: ReadRun, deadline: None
) -> None:
    config = small_config(env=register(Uneven), cpu_ranks=2, total_frames=512)
    run = prepare(config, lambda c, device: NoEndOnRankOne(c, METHODS["diffppo"].build, device))
    assert train(run)
    _, rows = read_run(run.output)
    # 4 environments with 32 steps in an iteration end after every third step.
    assert [float(row["episodes"]) for row in rows] == [4 * 10, 4 * 11]
    assert [float(row["episode_return"]) for row in rows] == [3, 3]
    assert [float(row["episode_length"]) for row in rows] == [3, 3]


# ---------------------------------------------------------------------------------------------
# Failures


def failing(fail: Callable[[], None]) -> Any:
    """Modules that fail on rank one, in the second iteration."""

    class Failing(OnPolicyModule):
        def training_step(self, rows: Any, batch_idx: int) -> None:
            if self.global_rank == 1 and self.progress.gradient_steps == 5:
                fail()
            super().training_step(rows, batch_idx)

    return lambda config, device: Failing(config, METHODS["diffppo"].build, device)


def test_an_error_on_one_rank_ends_the_run(small_config: SmallConfig, deadline: None) -> None:
    def fail() -> None:
        raise ArithmeticError("rank one cannot go on")

    config = small_config(cpu_ranks=2, total_frames=100_000, checkpoint_every=1)
    run = prepare(config, failing(fail))
    with pytest.raises(Exception, match="rank one cannot go on"):
        train(run)
    assert Checkpoint.read(run.output / "checkpoints" / "last.ckpt").state["frames"] == 256


def test_a_rank_that_is_killed_ends_the_run_and_is_named(
    small_config: SmallConfig, deadline: None
) -> None:
    config = small_config(cpu_ranks=2, total_frames=100_000, checkpoint_every=1)
    run = prepare(config, failing(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    last = run.output / "checkpoints" / "last.ckpt"
    with pytest.raises(TrainingError, match=f"rank 1 .* SIGKILL .*last good checkpoint is {last}"):
        train(run)
    assert Checkpoint.read(last).state["frames"] == 256


# ---------------------------------------------------------------------------------------------
# Launchers

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "2",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "1",
}
SRUN = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("name", "environment"), [("torchrun", TORCHRUN), ("srun", SRUN)])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpu_ranks": 2}, "2 rank.s. on each of 2 machine.* --cpu-ranks 2 and --num-nodes 1"),
        ({"num_nodes": 2}, "2 rank.s. on each of 2 machine.* --cpu-ranks 1 and --num-nodes 2"),
        ({"cpu_ranks": 2, "num_nodes": 2, "output": None}, "--output is needed"),
    ],
)
def test_a_launcher_and_the_flags_must_agree(
    small_config: SmallConfig,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    environment: dict[str, str],
    options: dict[str, Any],
    words: str,
) -> None:
    set_environment(monkeypatch, environment)
    with pytest.raises(ValueError, match=words) as raised:
        prepare(small_config(**options))
    assert name in str(raised.value)


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_ranks_of_a_launcher_have_their_places(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    set_environment(monkeypatch, environment)
    # The third of four ranks is the first of the second machine.
    assert local_rank() == 0
    assert not is_first_process()
    config = small_config(cpu_ranks=2, num_nodes=2)
    assert config.ranks == 4
    assert prepare(config).output == Path(str(config.output))


def test_srun_must_say_how_many_ranks_a_machine_has(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, SRUN)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match="srun needs --ntasks-per-node"):
        prepare(small_config(cpu_ranks=4))


def test_a_script_in_a_slurm_job_starts_its_ranks_itself(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"})
    assert is_first_process()
    assert prepare(small_config(cpu_ranks=2)).config.ranks == 2


def test_several_machines_need_a_launcher(small_config: SmallConfig) -> None:
    with pytest.raises(ValueError, match="--num-nodes 2 needs torchrun or srun"):
        prepare(small_config(num_nodes=2))


# ---------------------------------------------------------------------------------------------
# What launchers leave behind

ELSEWHERE = {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "NODE_RANK": "1", "GROUP_RANK": "1"}


@pytest.mark.parametrize(
    "left",
    [
        {"TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **ELSEWHERE},
        {"DIFFPOLICY_OUTPUT": "1:/elsewhere"},
    ],
)
def test_variables_that_were_left_behind_do_not_reach_a_run(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, left: dict[str, str]
) -> None:
    set_environment(monkeypatch, left)
    run = prepare(small_config(cpu_ranks=2, total_frames=256))
    assert train(run)
    assert Checkpoint.read(run.output / "checkpoints" / "last.ckpt").frames == 256
    assert {name: os.environ.get(name) for name in left} == left


@pytest.mark.parametrize(
    ("launcher", "environment", "missing"),
    [("torchrun", TORCHRUN, "LOCAL_RANK"), ("srun", SRUN, "SLURM_PROCID")],
)
def test_a_part_of_the_variables_of_a_launcher_is_refused(
    small_config: SmallConfig,
    monkeypatch: pytest.MonkeyPatch,
    launcher: str,
    environment: dict[str, str],
    missing: str,
) -> None:
    set_environment(monkeypatch, {k: v for k, v in environment.items() if k != missing})
    words = f"only a part of what {launcher} sets: {missing} is missing; .* or unset .*"
    with pytest.raises(ValueError, match=words):
        prepare(small_config())


@pytest.mark.parametrize("output", [None, "/elsewhere", "1:/elsewhere"])
def test_a_rank_that_nobody_has_started_is_refused(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, output: str | None
) -> None:
    set_environment(monkeypatch, {"LOCAL_RANK": "1"})
    if output is not None:
        monkeypatch.setenv("DIFFPOLICY_OUTPUT", output)
    with pytest.raises(ValueError, match="LOCAL_RANK=1 is set, but by neither torchrun nor srun"):
        prepare(small_config())


def test_a_rank_takes_the_folder_of_the_process_that_has_started_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIFFPOLICY_OUTPUT", "")
    announce(Path("runs/a:b"))
    assert announced() is None  # its own
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert announced() == Path("runs/a:b")


@pytest.mark.parametrize("typed", [False, True])
def test_a_shell_of_srun_is_not_a_rank(monkeypatch: pytest.MonkeyPatch, typed: bool) -> None:
    """``srun --ntasks 4 --pty bash`` gives a shell to the first of four tasks alone."""
    set_environment(monkeypatch, {**SRUN, "SLURM_PTY_PORT": "40000"})
    monkeypatch.setattr(sys.stdin, "isatty", lambda: typed, raising=False)
    assert launched_outside() == (not typed)
