"""Environments of a run: dictionary observations, episode limits, evaluations that fail."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import diffpolicy.trainers.loops.evaluation as evaluation
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers import (
    DiffPPOConfig,
    GaussianPPOConfig,
    OnPolicyModule,
    TrainingError,
    prepare,
    train,
)

SmallConfig = Callable[..., DiffPPOConfig]
Register = Callable[[type[gym.Env[Any, Any]]], str]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]


class Robot(gym.Env[Any, Any]):
    """Observes a dictionary; every entry is a constant that tells it apart. Episodes do not end."""

    action_space = gym.spaces.Box(-1.0, 1.0, (2,))
    observation_space = gym.spaces.Dict(
        {
            "target": gym.spaces.Box(-9.0, 9.0, (2,), np.float64),
            "body": gym.spaces.Dict({"speed": gym.spaces.Box(-9.0, 9.0, (3,))}),
            "camera": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "mode": gym.spaces.Discrete(3),
        }
    )
    bad_step = -1

    def _observe(self) -> Any:
        bad = np.nan if self.steps == self.bad_step else 0.0
        return {
            "target": np.full(2, 2.0 + bad),
            "body": {"speed": np.full(3, 3.0, np.float32)},
            "camera": np.zeros((4, 4, 3), np.uint8),
            "mode": 1,
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observe(), float(action.sum()), False, False, {}


class Pixels(Robot):
    """Observes a picture only."""

    observation_space = gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)

    def _observe(self) -> Any:
        return np.zeros((4, 4, 3), np.uint8)


class BadRobot(Robot):
    """The second observation of an episode is NaN; the reward is not."""

    bad_step = 1


def gaussian(config: DiffPPOConfig, **options: Any) -> GaussianPPOConfig:
    names = {field.name for field in dataclasses.fields(GaussianPPOConfig)}
    common = {k: v for k, v in dataclasses.asdict(config).items() if k in names}
    return GaussianPPOConfig(**{**common, "minibatch_size": 32, **options})


@pytest.mark.parametrize("method", ["diffppo", "gaussian"])
@pytest.mark.parametrize(
    ("chosen", "means"),
    [
        (("body.speed", "mode", "target"), [3.0, 3.0, 3.0, 0.0, 1.0, 0.0, 2.0, 2.0]),
        (("target", "body.speed"), [2.0, 2.0, 3.0, 3.0, 3.0]),
        (("target",), [2.0, 2.0]),
    ],
)
def test_dictionary_observations_are_concatenated(
    small_config: SmallConfig,
    register: Register,
    read_run: ReadRun,
    method: str,
    chosen: tuple[str, ...],
    means: list[float],
) -> None:
    config: Any = small_config(
        env=register(Robot), observation_keys=chosen, max_episode_steps=10, num_envs=2
    )
    run = prepare(gaussian(config) if method == "gaussian" else config)
    assert train(run)
    assert isinstance(run.module, OnPolicyModule)
    assert run.module.parts.normalizer is not None
    assert run.module.parts.normalizer.mean.tolist() == means
    results, rows = read_run(run.output)
    assert results["env_steps"] == 256
    assert {float(row["episode_length"]) for row in rows} == {10.0}


@pytest.mark.parametrize("name", ["speed", "step_count"])
def test_an_unknown_observation_key_is_refused_with_the_choices(
    small_config: SmallConfig, register: Register, name: str
) -> None:
    config = small_config(env=register(Robot), observation_keys=("target", name))
    with pytest.raises(ArgumentError, match=f"^observation_keys='{name}' is not obs") as raised:
        prepare(config)
    assert str(raised.value).endswith("by Robot-v0; choose from body.speed, camera, mode, target.")


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        (
            Robot,
            r"add --encoder cnn \(or module:Class\), or read other entries \(--observation-keys "
            r"body.speed --observation-keys mode --observation-keys target\)\.$",
        ),
        (Pixels, r"add --encoder cnn \(or module:Class\)\.$"),
    ],
)
def test_pictures_are_refused(
    small_config: SmallConfig,
    register: Register,
    environment: type[gym.Env[Any, Any]],
    advice: str,
) -> None:
    with pytest.raises(
        ArgumentError, match=rf"^env='{environment.__name__}-v0' .* image.*{advice}"
    ):
        prepare(small_config(env=register(environment)))


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_an_evaluation_without_an_end_stops_the_run_and_names_the_flag(
    small_config: SmallConfig,
    register: Register,
    monkeypatch: pytest.MonkeyPatch,
    cpu_ranks: int,
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", partial(evaluation.evaluate, max_steps=20))
    run = prepare(
        small_config(env=register(Robot), observation_keys=("target",), cpu_ranks=cpu_ranks),
    )
    words = r"evaluation after 0 .* --env Robot-v0 does not end; .* --max-episode-steps\."
    with pytest.raises(TrainingError, match=words) as raised:
        train(run)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_an_evaluation_that_sees_nan_stops_the_run(
    small_config: SmallConfig, register: Register, cpu_ranks: int
) -> None:
    config = small_config(
        env=register(BadRobot),
        observation_keys=("target",),
        cpu_ranks=cpu_ranks,
        max_episode_steps=10,
    )
    run = prepare(config)
    words = (
        r"evaluation after 0 .*'target'\) is not finite .* step 1 .*; check .* --env BadRobot-v0"
    )
    with pytest.raises(TrainingError, match=words):
        train(run)
    assert not (run.output / "results.json").exists()


def test_episodes_may_be_cut_shorter_than_the_environment_asks_for(
    small_config: SmallConfig, read_run: ReadRun
) -> None:
    config = small_config(env="Pendulum-v1", max_episode_steps=16, total_frames=128)
    run = prepare(config)
    train(run)
    _, rows = read_run(run.output)
    assert [float(row["episode_length"]) for row in rows] == [16.0]
    assert [float(row["episodes"]) for row in rows] == [8.0]
    # At most (pi^2 + 0.1 * 8^2 + 0.001 * 2^2) for each of the 16 steps of an evaluation, too.
    (first, *_) = run.module.progress.evaluations
    assert -16 * 16.3 <= first.return_mean < 0


def test_a_checkpoint_keeps_the_observation_keys(
    small_config: SmallConfig, register: Register
) -> None:
    options: dict[str, Any] = {"env": register(Robot), "max_episode_steps": 10}
    run = prepare(small_config(**options, observation_keys=("target",)))
    train(run)
    last = str(run.output / "checkpoints" / "last.ckpt")
    state = torch.load(last, weights_only=True)["diffpolicy"]
    assert state["config"]["observation_keys"] == ("target",)
    other = small_config(**options, observation_keys=("mode",), resume=last, total_frames=512)
    with pytest.raises(ValueError, match=r"--observation-keys .*target.* cannot change to .*mode"):
        prepare(other)
