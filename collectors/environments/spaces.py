"""What environments observe and do, as vectors: Gymnasium's spaces in TorchRL's terms."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import NestedKey

from diffpolicy.errors import ArgumentError

#: Where environments write what they observe, and nothing else.
OBSERVATION_KEY = "observation"
#: What environments of :func:`collectors.make_env` write besides: the sum of the rewards since the
#: reset, and the number of steps.
EPISODE_REWARD_KEY = "episode_reward"
STEP_COUNT_KEY = "step_count"
#: What joins the keys of dictionaries in dictionaries to one name: ``body.speed``.
SEPARATOR = "."


@dataclass(frozen=True)
class Entry:
    """One entry of an observation, which becomes one tensor.

    Attributes:
        path: keys of the dictionaries that lead to it; empty if it is the whole observation.
        space: its space.
        shape: shape of the tensor: ``[F]``, or that of an image, which stays as it is.
        dtype: float32, or uint8 for images.
        flatten: makes an array of a value of the space.
        root: keys under which environments write all entries; empty for those of other TorchRL
            environments, which are tensors already and keep shape and place.
    """

    path: tuple[str, ...]
    space: gym.Space[Any]
    shape: tuple[int, ...]
    dtype: type[np.generic]
    flatten: Callable[[Any], NDArray[Any]]
    root: tuple[str, ...] = (OBSERVATION_KEY,)

    @property
    def is_tensor(self) -> bool:
        """Whether it comes from a TorchRL environment of another making."""
        return not self.root

    @property
    def name(self) -> str:
        """The keys joined by dots; ``observation`` for the whole of it."""
        return SEPARATOR.join(self.path) or OBSERVATION_KEY

    @property
    def key(self) -> NestedKey:
        """Where it is in a TensorDict."""
        keys = (*self.root, *self.path)
        return keys if len(keys) > 1 else keys[0]

    def write(self, observation: Any, row: NDArray[Any]) -> None:
        """Copy this entry of an observation into ``row``, of this entry's shape.

        Raises:
            ValueError: the environment has given something else than its space says.
        """
        value = observation
        for key in self.path:
            value = _item(value, key, self.name)
        flat = self.flatten(value)
        if flat.shape != row.shape:
            if flat.size != row.size:
                raise ValueError(
                    f"the environment observes {self.name} of the shape {np.shape(value)}, but its "
                    f"observation space says {self.space}."
                )
            flat = flat.reshape(row.shape)
        row[...] = flat

    def of_batch(self, observations: Any, count: int) -> NDArray[Any]:
        """This entry of ``count`` observations at once, in new memory ``[count, *shape]``.

        Args:
            observations: arrays ``[count, ...]``, in dictionaries where the space has them.
            count: number of observations.
        """
        value = observations
        for key in self.path:
            value = _item(value, key, self.name)
        if not isinstance(self.space, spaces.Box):
            value = np.stack([self.flatten(item) for item in value])
        return np.array(value, self.dtype).reshape(count, *self.shape)


def observation_entries(
    env: str, space: gym.Space[Any], names: Sequence[str] | None = None
) -> list[Entry]:
    """The entries of an observation space, each with its place and its size.

    Dictionaries and tuples, also inside of each other, are taken apart. Their entries are
    flattened as by ``gymnasium.spaces.flatten``: integers and floats of any shape become vectors of
    floats, a Discrete becomes one-hot, a MultiBinary its bits, a MultiDiscrete one one-hot after
    the other. Images (uint8 with three dimensions) stay as they are.

    Args:
        env: name of the environment, for errors.
        space: its observation space.
        names: the entries that are wanted, in this order; by default all.

    Raises:
        ArgumentError: an entry that is wanted cannot be flattened, or does not exist.
    """
    leaves = list(_leaves(space))
    found = {SEPARATOR.join(path) or OBSERVATION_KEY: (path, leaf) for path, leaf in leaves}
    if not leaves or len(found) < len(leaves):
        raise ArgumentError(
            "name",
            env,
            f"has the observation space {space}, which has no entries, or two whose names are the "
            f"same once {SEPARATOR!r} joins their keys; rename them in the environment.",
        )
    wanted = list(found) if names is None else list(names)
    for name in wanted:
        if name not in found:
            problem = f"is not observed by {env}; choose from {', '.join(found)}."
            raise ArgumentError("observation_keys", name, problem)
    return [observation_entry(env, *found[name]) for name in wanted]


def is_image(space: gym.Space[Any]) -> bool:
    """Whether a space is that of pictures: uint8 with three dimensions."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _leaves(
    space: gym.Space[Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], gym.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            yield from _leaves(child, (*path, str(key)))
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from _leaves(child, (*path, str(index)))
    else:
        yield path, space


def _item(value: Any, key: str, name: str) -> Any:
    """The item of a dictionary, or of a tuple by the number in ``key``."""
    if isinstance(value, Mapping):
        if key in value:
            return value[key]
        # The keys of a Dict space are text, but nothing keeps them from being something else.
        match = next((own for own in value if str(own) == key), None)
        if match is not None:
            return value[match]
    elif isinstance(value, Sequence) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    raise ValueError(f"the environment's observation lacks {name}, which its space has.")


def observation_entry(
    env: str,
    path: tuple[str, ...],
    space: gym.Space[Any],
    root: tuple[str, ...] = (OBSERVATION_KEY,),
) -> Entry:
    """The entry at ``path`` in the observations of the environment ``env``, with its own space.

    Args:
        env: name of the environment, for errors.
        path: keys that lead to it.
        space: its space.
        root: see :class:`Entry`.

    Raises:
        ArgumentError: the space cannot be flattened.
    """
    if is_image(space) or not root:
        assert space.shape is not None
        dtype = np.uint8 if space.dtype == np.uint8 else np.float32
        return Entry(path, space, space.shape, dtype, np.asarray, root)
    if isinstance(space, spaces.Box):
        return Entry(path, space, (int(np.prod(space.shape)),), np.float32, np.asarray)
    if isinstance(space, (spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
        return Entry(path, space, (spaces.flatdim(space),), np.float32, _Checked(space))
    kind = type(space).__name__
    if not path:
        problem = f"observes a {kind}, which has no fixed size; flatten it in the environment."
        raise ArgumentError("name", env, problem)
    raise ArgumentError(
        "observation_keys",
        SEPARATOR.join(path),
        f"is a {kind} of {env}, which has no fixed size; choose other entries, and leave it out.",
    )


class _Checked:
    """Flattens values of a discrete space, and refuses what is none: it would look like another."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self.space = space

    def __call__(self, value: Any) -> NDArray[Any]:
        given = np.asarray(value)
        if isinstance(self.space, spaces.Discrete):
            # Environments give Python's integers, numpy's, or arrays of one.
            if given.size != 1 or not self.space.contains(int(given.reshape(()))):
                raise ValueError(
                    f"the environment observes {value!r}, which is not in {self.space}."
                )
            return np.asarray(spaces.flatten(self.space, int(given.reshape(()))))
        valid = given.astype(self.space.dtype)
        if not self.space.contains(valid) or not np.array_equal(valid, given):
            raise ValueError(f"the environment observes {value!r}, which is not in {self.space}.")
        return np.asarray(spaces.flatten(self.space, valid))


@dataclass(frozen=True)
class Actions:
    """The actions of a bounded space as vectors of float32, all of them inside of the bounds.

    Bounds that float32 cannot represent are rounded inwards. What an environment gets is a new
    array of its own type and shape each time, clipped to its own bounds.

    Attributes:
        space: the environment's action space.
        low: smallest action ``[A]``, float32.
        high: largest action ``[A]``, float32.
    """

    space: spaces.Box
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, name: str, space: gym.Space[Any]) -> "Actions":
        """The actions of the environment ``name``.

        Raises:
            ArgumentError: they are not bounded vectors of floats.
        """
        if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
            raise ArgumentError(
                "name",
                name,
                f"has the action space {space}, but only continuous actions (gymnasium.spaces.Box "
                "of floats) are supported; choose a continuous variant, for example "
                "MountainCarContinuous-v0 or Pendulum-v1.",
            )
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ArgumentError(
                "name",
                name,
                f"has the unbounded action space {space}, but finite bounds are needed; register "
                f"the environment with a finite Box, for example Box(-1.0, 1.0, {space.shape}).",
            )
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        if not (low < high).all():
            raise ArgumentError(
                "name",
                name,
                f"has the action space {space}, in which some actions have no choice at all; "
                "leave those out of the space.",
            )
        return cls(space, _inwards(low, np.inf), _inwards(high, -np.inf))

    def to_environment(self, action: NDArray[np.float32]) -> NDArray[Any]:
        """A new array in the type and the bounds of the space, for actions ``[*B, A]``."""
        given = action.astype(self.space.dtype).reshape(*action.shape[:-1], *self.space.shape)
        return np.clip(given, self.space.low, self.space.high)


def _inwards(bound: NDArray[Any], towards: float) -> NDArray[np.float32]:
    """A bound in float32, rounded in the direction ``towards`` where it must be rounded."""
    rounded = bound.astype(np.float32)
    outside = rounded < bound if towards > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(towards)), rounded)
