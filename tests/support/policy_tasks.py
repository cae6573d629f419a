"""Tasks whose policies have to remember, and what their simulators were given."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

#: Every action that a simulator of :class:`Recorder` or :class:`Cart` has taken.
TAKEN: list[NDArray[Any]] = []


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Writes down what the simulator inside of it gets."""

    def step(self, action: Any) -> Any:
        TAKEN.append(np.array(action))
        return super().step(action)


class Everything(gym.Env[Any, Any]):
    """Images of both layouts, all discrete spaces and a matrix, for seven steps.

    Each has its own way to be stacked.
    """

    action_space = spaces.Box(np.array([[-2.0, 0.0]]), np.array([[2.0, 1.0]]), (1, 2), np.float64)
    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "other": spaces.Dict({"camera": spaces.Box(0, 255, (1, 9, 9), np.uint8)}),
            "gear": spaces.Discrete(3),
            "lamp": spaces.Discrete(3, start=1),
            "lights": spaces.MultiBinary(2),
            "keys": spaces.MultiDiscrete([2, 3]),
            "target": spaces.Box(-9.0, 9.0, (2, 2), np.float64),
        }
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation_space.sample(), 0.0, self.steps == 7, False, {}


class Cart(EnvBase):
    """A cart and a picture of it, for seven steps; a batch of any size."""

    bounds: ClassVar[tuple[float, float]] = (-1.0, 3.0)

    def __init__(self, num_envs: int = 1) -> None:
        super().__init__(batch_size=[num_envs])
        self.action_spec = Bounded(*self.bounds, (num_envs, 2))
        self.observation_spec = Composite(
            place=Unbounded((num_envs, 2)),
            seen=Composite(picture=Unbounded((num_envs, 1, 5, 5)), shape=[num_envs]),
            shape=[num_envs],
        )
        self.reward_spec = Unbounded((num_envs, 1))
        self.done_spec = Categorical(2, shape=(num_envs, 1), dtype=torch.bool)
        self.generator = torch.Generator()

    def _entries(self, place: Tensor) -> TensorDict:
        picture = place.sum(-1)[:, None, None, None] * torch.linspace(-1, 1, 25).reshape(1, 1, 5, 5)
        done = torch.full((*self.batch_size, 1), self.steps >= 7)
        return TensorDict(
            {"place": place, "seen": {"picture": picture}, "done": done}, self.batch_size
        )

    def _reset(self, tensordict: Any = None, **options: Any) -> Any:
        self.steps = 0
        return self._entries(torch.rand(*self.batch_size, 2, generator=self.generator))

    def _step(self, tensordict: Any) -> Any:
        TAKEN.append(tensordict["action"].numpy().copy())
        self.steps += 1
        place = tensordict["place"][..., -2:] + 0.3 * tensordict["action"]
        return self._entries(place).set("reward", -place.norm(dim=-1, keepdim=True))

    def _set_seed(self, seed: Any) -> None:
        self.generator.manual_seed(seed)


class Eye(nn.Module):
    """An encoder of one's own."""

    def __init__(self, shape: tuple[int, ...], features: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(int(np.prod(shape)), features)
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image.flatten(1).float() * self.scale / 255)


class Branching(Eye):
    """Cannot be followed by exporters: what it does depends on the numbers."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image if float(image.float().mean()) > 0 else 0 * image)


def make_eye(shape: tuple[int, ...]) -> nn.Module:
    """A function that builds an encoder."""
    return Eye(shape)
