"""Tasks that are learned from images, small enough for a CPU."""

from typing import Any

import gymnasium as gym
import numpy as np


class Spot(gym.Env[Any, Any]):
    """A spot in an image of 16 x 16 pixels is where the action should point; one step each."""

    action_space = gym.spaces.Box(-1.0, 1.0, (2,))
    observation_space: gym.Space[Any] = gym.spaces.Box(0, 255, (16, 16, 1), np.uint8)

    def observe(self) -> Any:
        image = np.zeros((16, 16, 1), np.uint8)
        column, row = ((self.target + 1) * 7).round().astype(int)
        image[row : row + 2, column : column + 2] = 255
        return image

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-0.9, 0.9, 2)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        reward = -float(np.square(action - self.target).sum())
        return self.observe(), reward, True, False, {}


class Mixed(Spot):
    """An image with the channels first, and the height of the spot as a number as well."""

    observation_space = gym.spaces.Dict(
        {
            "camera": gym.spaces.Box(0, 255, (1, 16, 16), np.uint8),
            "height": gym.spaces.Box(-1.0, 1.0, (1,)),
        }
    )

    def observe(self) -> Any:
        return {
            "camera": super().observe().transpose(2, 0, 1),
            "height": self.target[1:].astype(np.float32),
        }
