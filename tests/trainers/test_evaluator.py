"""Evaluations in environments of their own or in those that are trained on; what runs say first."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from diffpolicy.trainers import DiffPPOConfig, prepare, train

SmallConfig = Callable[..., DiffPPOConfig]
Register = Callable[[type[gym.Env[Any, Any]]], str]


class Alone(PendulumEnv):
    """Only one can be there at a time."""

    alive: ClassVar[int] = 0

    def __init__(self) -> None:
        if type(self).alive:
            raise OSError("the port is taken")
        super().__init__()
        type(self).alive += 1

    def close(self) -> None:
        type(self).alive -= 1


class Opaque(PendulumEnv):
    """Holds something whose state cannot be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Numbered(PendulumEnv):
    """Draws its starts from NumPy's global generator."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed, options=options)
        self.state = np.random.uniform(-1, 1, 2)  # noqa: NPY002
        return self._get_obs(), {}


def run(config: DiffPPOConfig) -> tuple[bytes, Any]:
    prepared = prepare(config)
    assert train(prepared)
    return (prepared.output / "metrics.csv").read_bytes(), prepared.module


@pytest.mark.parametrize("environment", [PendulumEnv, Numbered])
def test_evaluations_in_the_training_environments_change_nothing(
    small_config: SmallConfig,
    register: Register,
    tmp_path: Path,
    environment: type[gym.Env[Any, Any]],
) -> None:
    # As many copies as in evaluations: they share what they draw from a global generator.
    options = {"env": register(environment), "max_episode_steps": 20, "num_envs": 2}
    options |= {"rollout_steps": 64, "eval_every": 128}
    own, _ = run(small_config(**options, output=str(tmp_path / "own")))
    training, module = run(
        small_config(**options, eval_env="training", output=str(tmp_path / "training"))
    )
    assert len(module.progress.evaluations) == 3
    assert own == training


def test_a_simulator_that_runs_only_once_is_evaluated_where_it_trains(
    small_config: SmallConfig,
    register: Register,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = {"num_envs": 1, "rollout_steps": 128, "max_episode_steps": 20, "eval_every": 128}
    options |= {"eval_episodes": 1}  # one round of as many copies in both runs
    found, module = run(small_config(env=register(Alone), **options))
    told = capfd.readouterr().err
    assert told.count("OSError: the port is taken") == 1
    assert "evaluations use the latter, as with --eval-env training" in told
    assert Alone.alive == 0
    plain = small_config(env="Pendulum-v1", **options, output=str(tmp_path / "plain"))
    assert found == run(plain)[0]
    assert len(module.progress.evaluations) == 3


def test_episodes_that_cannot_go_on_start_anew_and_a_warning_says_so(
    small_config: SmallConfig,
    register: Register,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = {"env": register(Opaque), "max_episode_steps": 100, "eval_every": 128}
    first, module = run(
        small_config(**options, eval_env="training", output=str(tmp_path / "first"))
    )
    told = capfd.readouterr().err
    assert told.count("episodes of the training start anew after each evaluation") == 1
    assert "Opaque.lock" in told
    assert "because the state of Opaque.lock cannot be saved" in module.notes.inexact
    again, _ = run(small_config(**options, eval_env="training", output=str(tmp_path / "again")))
    assert first == again


def test_workers_have_no_environments_to_lend() -> None:
    with pytest.raises(ValueError, match="--eval-env training needs --collector local"):
        DiffPPOConfig(eval_env="training", collector="process", num_workers=1)


class TestNotes:
    def test_what_is_read_and_driven(self, small_config: SmallConfig) -> None:
        notes = prepare(small_config(env="Pendulum-v1")).module.notes
        assert notes.interface == "reads observation (3); drives 1 action(s) in [-2, 2]"
        assert notes.inexact == ""

    def test_bounds_that_differ(self, small_config: SmallConfig, register: Register) -> None:
        class Uneven(PendulumEnv):
            def __init__(self) -> None:
                super().__init__()
                self.action_space = gym.spaces.Box(
                    np.array([-1, 0], np.float32), np.array([1, 3], np.float32)
                )

        notes = prepare(small_config(env=register(Uneven))).module.notes
        assert notes.interface.endswith("2 action(s) in bounds of their own inside of [-1, 3]")

    def test_what_is_not_exact(self, small_config: SmallConfig) -> None:
        config = small_config(env="Pendulum-v1", collector="process", num_workers=1)
        notes = prepare(config).module.notes
        assert notes.inexact == (
            "not exact: with --collector process a resumed run starts new episodes"
        )
