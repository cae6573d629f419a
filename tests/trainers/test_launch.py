"""Loggers: what is refused, and what is always written."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpolicy.trainers import (
    DiffPPOConfig,
    prepare,
    train,
)
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
