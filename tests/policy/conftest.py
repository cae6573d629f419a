"""Checkpoints of untrained runs whose parameters have moved, and a dictionary environment."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_methods import known_options, small_config

from diffpolicy.actors import ActionClip
from diffpolicy.files import CHECKPOINT_FOLDER, LAST_CHECKPOINT, write_plain
from diffpolicy.trainers import METHODS, RLModule

ROBOT = "PolicyRobot-v0"


class Robot(gym.Env[Any, Any]):
    """Observes all that can be read: nested dictionaries, discrete entries, matrices."""

    observation_space = spaces.Dict(
        {
            "target": spaces.Box(-9.0, 9.0, (2, 2), np.float64),
            "body": spaces.Dict({"speed": spaces.Box(-9.0, 9.0, (3,))}),
            "gear": spaces.Discrete(3, start=1),
            "lights": spaces.MultiBinary(2),
            "keys": spaces.MultiDiscrete([2, 3]),
        }
    )
    action_space = spaces.Box(np.array([[-2.0, 0.0]]), np.array([[2.0, 1.0]]), (1, 2), np.float64)

    observation: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> Any:
        own = self.observation
        return self.observation_space.sample() if own is None else own


@pytest.fixture(scope="session")
def robot() -> Iterator[str]:
    gym.register(ROBOT, Robot, max_episode_steps=20)
    yield ROBOT
    del gym.registry[ROBOT]


MakeModule = Callable[..., RLModule]


@pytest.fixture(scope="session")
def make_module() -> MakeModule:
    """Builds the module of a small run; every parameter and statistic has been moved."""

    def make(name: str, **options: Any) -> RLModule:
        config = small_config(name, **known_options(name, **options))
        module = METHODS[name].module(config, torch.device("cpu"))
        generator = torch.Generator().manual_seed(1)
        # Not so far that clipped actions are all at a bound: the first of two steps divides by .03.
        clips = isinstance(getattr(module.actor, "squash", None), ActionClip)
        far = 0.01 if clips else 0.3
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(far * torch.randn(parameter.shape, generator=generator))
        normalizer = getattr(module.parts, "normalizer", None)
        if normalizer is not None:
            rows = torch.randn(50, normalizer.mean.shape[0], generator=generator)
            normalizer.update(3 * rows + 1)
        return module

    return make


WriteRun = Callable[[RLModule, Path], Path]


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    """Writes a checkpoint of a module into the folder of a run, without training it."""

    def write(module: RLModule, folder: Path) -> Path:
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        (folder / CHECKPOINT_FOLDER).mkdir(parents=True)
        write_plain(folder / CHECKPOINT_FOLDER / LAST_CHECKPOINT, checkpoint)
        return folder

    return write


@pytest.fixture(scope="session")
def modules(make_module: MakeModule) -> dict[str, RLModule]:
    """One module of every method, on Pendulum-v1."""
    return {name: make_module(name) for name in METHODS}


@pytest.fixture(scope="session")
def runs(
    modules: dict[str, RLModule], write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folder of a run of every method."""
    root = tmp_path_factory.mktemp("runs")
    return {name: write_run(module, root / name) for name, module in modules.items()}
