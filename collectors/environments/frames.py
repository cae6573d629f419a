"""Histories: the last observations of an environment as one observation."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from torchrl.envs import CatFrames, EnvBase, TransformedEnv

from collectors.environments.observed import observed_entries
from collectors.environments.spaces import is_image
from diffpolicy.networks.encoders import channels_last


def with_frames(
    count: int, names: Sequence[str] | None, env: gym.Env[Any, Any] | EnvBase
) -> gym.Env[Any, Any] | EnvBase:
    """An environment that observes its last observations, the oldest first.

    Vectors are joined to longer ones, images have ``count`` times as many channels. An episode
    begins with copies of its first observation.

    Args:
        count: how many.
        names: the entries of a TorchRL environment's observation; by default all of its vectors
            and images. Of a Gymnasium environment all entries have a history.
        env: the environment.
    """
    if isinstance(env, gym.Env):
        return FramesAsChannels(FrameStackObservation(env, count, padding_type="reset"))
    entries = observed_entries(env, names)
    first = [e.key for e in entries if e.is_image and not channels_last(e.shape)]
    last = [e.key for e in entries if e.key not in first]
    for keys, dim in ((last, -1), (first, -3)):
        if keys:
            stack = CatFrames(N=count, dim=dim, in_keys=keys, padding="same")
            env = TransformedEnv(env, stack, auto_unwrap=False)
    return env


class FramesAsChannels(gym.ObservationWrapper[Any, Any, Any]):
    """Joins the stacked images of an observation along their channels.

    Args:
        env: observes stacks ``[K, ...]`` of what the environment inside of it observes.
    """

    def __init__(self, env: FrameStackObservation[Any, Any]) -> None:
        super().__init__(env)
        self._inner = env.env.observation_space
        self.observation_space = _joined_space(self._inner, env.observation_space)

    def observation(self, observation: Any) -> Any:
        """The observation with images ``[H, W, K * C]`` or ``[K * C, H, W]``."""
        return _joined(self._inner, observation)


def _joined_space(inner: gym.Space[Any], stacked: gym.Space[Any]) -> gym.Space[Any]:
    if isinstance(inner, spaces.Dict):
        assert isinstance(stacked, spaces.Dict)
        return spaces.Dict({k: _joined_space(s, stacked[k]) for k, s in inner.spaces.items()})
    if isinstance(inner, spaces.Tuple):
        assert isinstance(stacked, spaces.Tuple)
        pairs = zip(inner.spaces, stacked.spaces, strict=True)
        return spaces.Tuple([_joined_space(*pair) for pair in pairs])
    if not is_image(inner):
        return stacked
    assert isinstance(stacked, spaces.Box)
    low, high = (_joined(inner, bound) for bound in (stacked.low, stacked.high))
    return spaces.Box(low, high, dtype=np.uint8)


def _joined(space: gym.Space[Any], value: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _joined(child, value[key]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map(_joined, space.spaces, value))
    if not is_image(space):
        return value
    assert space.shape is not None
    return np.concatenate(list(value), -1 if channels_last(space.shape) else 0)
