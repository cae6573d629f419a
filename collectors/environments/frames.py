"""Histories: the last observations of an environment as one observation."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray

from collectors.environments.spaces import Entry, is_image, observation_entry
from diffpolicy.networks.encoders import channels_last


class FramesAsChannels(gym.ObservationWrapper[Any, Any, Any]):
    """Observes the last observations, the oldest first; images are joined along their channels.

    An episode begins with copies of its first observation.

    Args:
        count: how many; everything but images gets a new first dimension of this size.
        env: the environment.

    Attributes:
        count: see above.
        frame_space: the space of a single observation.
    """

    def __init__(self, count: int, env: gym.Env[Any, Any]) -> None:
        stacked = FrameStackObservation(env, count, padding_type="reset")
        super().__init__(stacked)
        self.count = count
        self.frame_space = env.observation_space
        self.observation_space = _joined_space(self.frame_space, stacked.observation_space)

    def observation(self, observation: Any) -> Any:
        """The observation with images ``[H, W, K * C]`` or ``[K * C, H, W]``."""
        return _joined(self.frame_space, observation)


def stacked_entry(entry: Entry, count: int) -> Entry:
    """What environments with histories observe instead of an entry.

    Args:
        entry: one of a single observation.
        count: number of observations.
    """
    if count == 1:
        return entry
    axis = _joined_axis(entry)
    if axis is None:
        space = batch_space(entry.space, count)
    else:
        box: Any = entry.space
        low, high = (np.concatenate([bound] * count, axis) for bound in (box.low, box.high))
        space = spaces.Box(low, high, dtype=box.dtype)
    return observation_entry(entry.name, entry.path, space, entry.root)


def stack_frames(entry: Entry, frames: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Values of :func:`stacked_entry` from those of single observations, the oldest first.

    Args:
        entry: one of a single observation.
        frames: its values, ``[*B, *shape of its space]`` each.
    """
    axis = _joined_axis(entry)
    assert entry.space.shape is not None
    if axis is None:
        return np.stack(frames, -len(entry.space.shape) - 1)
    return np.concatenate(frames, axis)


def _joined_axis(entry: Entry) -> int | None:
    """The dimension along which frames are joined; None where they get one of their own."""
    shape = entry.space.shape
    assert shape is not None
    if is_image(entry.space) or (entry.is_tensor and len(shape) == 3):
        return -1 if channels_last(shape) else -3
    return -1 if entry.is_tensor else None


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
