"""Small environments and policies with known behaviour."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs import EnvBase, ExplorationType, exploration_type

from collectors import make_env


class CountingEnv(gym.Env[Any, Any]):
    """Observes the number of steps taken; the reward is that number; ends after ``length`` steps.

    ``bad_step`` gives a NaN observation (or reward) at that step.
    """

    def __init__(
        self,
        length: int = 5,
        low: float = -1.0,
        high: float = 1.0,
        as_dict: bool = False,
        bad_step: int = -1,
        bad_entry: str = "observation",
        integer_actions: bool = False,
    ) -> None:
        box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(low, high, (1,), np.float32)
        if integer_actions:
            self.action_space = gym.spaces.Box(0, 3, (1,), np.int64)
        self.observation_space = box
        if as_dict:
            self.observation_space = gym.spaces.Dict(
                {"body": gym.spaces.Dict({"speed": box}), "target": box}
            )
        self.length, self.as_dict = length, as_dict
        self.bad_step, self.bad_entry = bad_step, bad_entry
        self.steps = 0
        self.last_action = 0.0

    def _observe(self) -> Any:
        value = np.array([self.steps, self.last_action], dtype=np.float64)
        if self.steps == self.bad_step and self.bad_entry == "observation":
            value[0] = np.nan
        return {"body": {"speed": value}, "target": value + 10} if self.as_dict else value

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.last_action = 0, 0.0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.last_action = float(action[0])
        bad = self.steps == self.bad_step and self.bad_entry == "reward"
        reward = float("nan") if bad else float(self.steps)
        return self._observe(), reward, self.steps >= self.length, False, {}


@pytest.fixture(autouse=True)
def counting_env() -> Iterator[None]:
    """Register ``Counting-v0`` for the length of a test."""
    gym.register("Counting-v0", entry_point=CountingEnv, disable_env_checker=True)
    yield
    del gym.registry["Counting-v0"]


@pytest.fixture(
    params=[
        "gymnasium",
        pytest.param(
            "envpool",
            marks=pytest.mark.skipif(find_spec("envpool") is None, reason="needs EnvPool"),
        ),
    ]
)
def source(request: pytest.FixtureRequest) -> str:
    """Who runs the tasks of a test: it passes with each of them."""
    return str(request.param)


@pytest.fixture
def pendulum(source: str) -> Callable[..., EnvBase]:
    """Build two pendulums."""
    return partial(make_env, "Pendulum-v1", num_envs=2, source=source)


class GaussianNet(nn.Module):
    """A linear policy with unit noise under RANDOM exploration, clamped to the bounds."""

    def __init__(self, observation_dim: int, action_dim: int, bound: float) -> None:
        super().__init__()
        self.linear = nn.Linear(observation_dim, action_dim)
        self.bound = bound

    def forward(self, observation: Tensor) -> Tensor:
        action = self.linear(observation)
        if exploration_type() == ExplorationType.RANDOM:
            action = action + torch.randn_like(action)
        return action.clamp(-self.bound, self.bound)


MakePolicy = Callable[..., TensorDictModule]


@pytest.fixture
def make_policy() -> MakePolicy:
    """Build a small stochastic policy, the same one every time."""

    def build(observation_dim: int, action_dim: int, bound: float = 1.0) -> TensorDictModule:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = GaussianNet(observation_dim, action_dim, bound)
        return TensorDictModule(net, in_keys=["observation"], out_keys=["action"])

    return build
