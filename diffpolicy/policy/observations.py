"""NumPy observations as the networks read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import TensorDictBase

from collectors.environments.spaces import OBSERVATION_KEY, SEPARATOR, Entry
from diffpolicy.errors import ArgumentError


@dataclass(frozen=True)
class Observation:
    """What an environment has given: numbers of the right shapes.

    Attributes:
        values: for each entry, ``[*batch, *shape of its space]``.
        rows: for each entry, what a network reads of it: ``[*batch, *entry.shape]``.
        batch: shape of the batch; ``()`` for a single observation.
    """

    values: tuple[NDArray[Any], ...]
    rows: tuple[NDArray[Any], ...]
    batch: tuple[int, ...]


def read_observation(entries: Sequence[Entry], observation: Any) -> Observation:
    """One observation, or a batch of any shape.

    Args:
        entries: what is read.
        observation: an array for an environment that observes one; else a dictionary, nested as
            the environment's or with the dotted names of its entries (``"body.speed"``), or a
            TensorDict. What is not read may be left out.

    Raises:
        ArgumentError: naming what was expected and what was given.
    """
    if isinstance(observation, TensorDictBase):
        observation = observation.detach().cpu().to_dict()
    values = tuple(_numbers(entry, _value(entry, observation)) for entry in entries)
    dims = [len(_shape(entry)) for entry in entries]
    batches = [v.shape[: v.ndim - count] for v, count in zip(values, dims, strict=True)]
    if len(set(batches)) > 1:
        given = ", ".join(f"{e.name} {b}" for e, b in zip(entries, batches, strict=True))
        raise ArgumentError(
            "observation", f"a batch with {given}", "must have the same batch shape in all entries."
        )
    rows = tuple(encode(entry, value) for entry, value in zip(entries, values, strict=True))
    return Observation(values, rows, batches[0])


def encode(entry: Entry, value: NDArray[Any]) -> NDArray[Any]:
    """What a network reads ``[*B, *entry.shape]`` of values ``[*B, *shape of the entry's space]``.

    Raises:
        ArgumentError: for values that are not finite, or not in a discrete space.
    """
    shape = _shape(entry)
    batch = value.shape[: value.ndim - len(shape)]
    if isinstance(entry.space, spaces.Box):
        # What float32 cannot hold becomes infinite, and is refused below.
        with np.errstate(over="ignore"):
            rows = value.astype(entry.dtype).reshape(*batch, *entry.shape)
    else:
        rows = _one_hot(entry, value.reshape(-1, *shape)).reshape(*batch, *entry.shape)
    if not np.isfinite(rows).all():
        raise ArgumentError("observation", entry.name, "must be finite, and has NaN or infinity.")
    return rows


def _value(entry: Entry, observation: Any) -> Any:
    """What an observation holds for an entry."""
    if isinstance(observation, Mapping) and entry.name in observation:
        return observation[entry.name]
    value = observation
    # What a TorchRL environment calls "observation" may be given as it is.
    whole = entry.name == OBSERVATION_KEY and not isinstance(observation, Mapping)
    for key in () if whole else entry.path:
        value = _item(value, key)
        if value is None:
            raise _misses(entry, observation)
    if isinstance(value, Mapping):
        raise _misses(entry, observation)
    return value


def _item(value: Any, key: str) -> Any:
    """The item of a dictionary, or of a tuple by the number in ``key``; None if there is none."""
    if isinstance(value, Mapping):
        # The keys of a Dict space are text, but nothing keeps them from being something else.
        return next((item for own, item in value.items() if str(own) == key), None)
    if isinstance(value, Sequence) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    return None


def _misses(entry: Entry, observation: Any) -> ArgumentError:
    if isinstance(observation, Mapping):
        given = f"a dictionary with {', '.join(map(str, observation)) or 'nothing'}"
    else:
        given = f"{type(observation).__name__} of the shape {np.shape(observation)}"
    where = "as an array" if entry.name == OBSERVATION_KEY else f"in a dictionary ({entry.name})"
    nested = f", or nested: {' -> '.join(entry.path)}" if SEPARATOR in entry.name else ""
    return ArgumentError("observation", given, f"lacks {entry.name}; give it {where}{nested}.")


def _numbers(entry: Entry, value: Any) -> NDArray[Any]:
    """The values of an entry ``[*B, *shape of its space]``."""
    given, shape = np.asarray(value), _shape(entry)
    single = given.ndim - len(shape)
    if single < 0 or given.shape[single:] != shape or given.dtype.kind not in "fiub":
        sizes = ", ".join(map(str, shape))
        raise ArgumentError(
            "observation",
            f"{entry.name} of the shape {given.shape} and type {given.dtype}",
            f"must be numbers of the shape ({sizes}), or (*batch{', ' if sizes else ''}{sizes}).",
        )
    return given


def _shape(entry: Entry) -> tuple[int, ...]:
    assert entry.space.shape is not None
    return entry.space.shape


def _one_hot(entry: Entry, values: NDArray[Any]) -> NDArray[np.float32]:
    rows = np.empty((len(values), *entry.shape), np.float32)
    for row, value in zip(rows, values, strict=True):
        try:
            row[...] = entry.flatten(value)
        except ValueError as error:
            raise ArgumentError(
                "observation", f"{entry.name} {value}", f"is not in {entry.space}."
            ) from error
    return rows
