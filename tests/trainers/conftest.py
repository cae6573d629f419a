"""Small runs of the trainers."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from diffpolicy.trainers import (
    DiffPPOConfig,
)

# 128 environment steps in an iteration, two episodes in an evaluation.
SMALL: dict[str, Any] = {
    "num_envs": 4,
    "rollout_steps": 32,
    "epochs": 2,
    "minibatch_size": 128,
    "denoising_steps": 2,
    "actor_hidden_sizes": (16,),
    "critic_hidden_sizes": (16,),
    "eval_episodes": 2,
    "eval_every": 10_000,
    "total_frames": 256,
    "logger": ("csv",),
}


@pytest.fixture
def small_config(tmp_path: Path) -> Callable[..., DiffPPOConfig]:
    """Build a configuration of a small run in ``tmp_path / "run"``; arguments replace defaults."""

    def build(**options: Any) -> DiffPPOConfig:
        return DiffPPOConfig(**{**SMALL, "output": str(tmp_path / "run"), **options})

    return build


@pytest.fixture
def register() -> Iterator[Callable[[type[gym.Env[Any, Any]]], str]]:
    """Register environments for the length of a test; returns their ids."""
    names: list[str] = []

    def register_one(env_class: type[gym.Env[Any, Any]]) -> str:
        names.append(f"{env_class.__name__}-v0")
        gym.register(names[-1], env_class, disable_env_checker=True)
        return names[-1]

    yield register_one
    for name in names:
        del gym.registry[name]


@pytest.fixture
def read_run() -> Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]:
    """Read results.json and the rows of metrics.csv."""

    def read(output: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
        with (output / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return json.loads((output / "results.json").read_text()), rows

    return read
