"""Loggers: what is refused, and what is always written."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from diffpolicy.trainers import DiffPPOConfig, prepare, train
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.loops.progress import Progress

SmallConfig = Callable[..., DiffPPOConfig]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]


@pytest.mark.parametrize("logger", [("tensorboard",), ("csv",)])
def test_metrics_are_written_whatever_the_loggers(
    small_config: SmallConfig, read_run: ReadRun, logger: tuple[str, ...]
) -> None:
    run = prepare(small_config(logger=logger, total_frames=128))
    assert train(run)
    _, rows = read_run(run.output)
    assert [int(row["frames"]) for row in rows] == [128]
    assert (run.output / "tensorboard").exists() == ("tensorboard" in logger)


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_kernels_are_chosen_for_the_run_only(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    chosen = []
    monkeypatch.setattr(
        Progress,
        "start_clock",
        lambda progress: chosen.append(torch.are_deterministic_algorithms_enabled()),
    )
    config = small_config(deterministic=deterministic, total_frames=128)
    assert train(prepare(config))
    assert chosen == [deterministic]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def no_wandb_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home without a login at Weights & Biases."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


def test_wandb_without_a_login_is_refused_before_anything_is_written(
    small_config: SmallConfig, no_wandb_login: None, tmp_path: Path
) -> None:
    config = small_config(logger=("csv", "wandb"))
    with pytest.raises(ValueError, match=r"--logger wandb .*`wandb login`.*WANDB_MODE=offline"):
        prepare(config)
    assert not (tmp_path / "run").exists()


def test_wandb_needs_no_login_when_offline(
    small_config: SmallConfig, no_wandb_login: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert prepare(small_config(logger=("wandb",))).frames == 0


class Stubborn(gym.Env[Any, Any]):
    """A simulator that cannot be closed."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(2, np.float32), 0.0, False, self.steps == 5, {}

    def close(self) -> None:
        raise OSError("the licence server is gone")


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_a_simulator_that_cannot_be_closed_costs_one_warning(
    small_config: SmallConfig,
    register: Callable[[type[gym.Env[Any, Any]]], str],
    capsys: pytest.CaptureFixture[str],
    cpu_ranks: int,
) -> None:
    env = register(Stubborn)
    total = 128 * cpu_ranks
    config = small_config(env=env, total_frames=total, cpu_ranks=cpu_ranks)
    run = prepare(config)
    assert train(run)
    assert Checkpoint.read(run.output / "checkpoints" / "last.ckpt").frames == total
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(warnings) == 1
    assert f"--env {env} could not be closed (OSError: the licence server is gone)" in warnings[0]


@pytest.mark.parametrize("method", ["finalize", "log_metrics", "save"])
def test_a_logger_that_fails_costs_one_warning(
    small_config: SmallConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("the service is gone")

    monkeypatch.setattr(TensorBoardLogger, method, fail)
    run = prepare(small_config(logger=("tensorboard",), total_frames=128))
    assert train(run)
    assert Checkpoint.read(run.output / "checkpoints" / "last.ckpt").frames == 128
    said = capsys.readouterr().err
    assert said.count("warning: TensorBoardLogger has failed") == 1
    assert "ConnectionError: the service is gone" in said
