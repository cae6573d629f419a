"""Gymnasium's spaces as plain data."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def plain_space(space: gym.Space[Any], *, bounds: bool = False) -> dict[str, Any]:
    """A space without parts as numbers and text; :func:`space_from_plain` reads it.

    Args:
        space: a Box, Discrete, MultiBinary or MultiDiscrete.
        bounds: whether the bounds of a Box matter; they must be finite then.

    Raises:
        TypeError: for another space.
    """
    match space:
        case spaces.Box():
            box = {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype)}
            if bounds:
                box["low"], box["high"] = (end.ravel().tolist() for end in (space.low, space.high))
            return box
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "shape": list(space.shape)}
        case spaces.MultiDiscrete():
            return {
                "type": "MultiDiscrete",
                "nvec": space.nvec.tolist(),
                "start": space.start.tolist(),
            }
    raise TypeError(f"{space} has parts, or no fixed size.")


def space_from_plain(data: Mapping[str, Any]) -> gym.Space[Any]:
    """The space that :func:`plain_space` has written.

    Raises:
        ValueError: for a type that this version does not know.
    """
    match data["type"]:
        case "Box":
            return _box(data)
        case "Discrete":
            return spaces.Discrete(data["n"], start=data["start"])
        case "MultiBinary":
            return spaces.MultiBinary(data["shape"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(data["nvec"], start=data["start"])
    raise ValueError(f"this version does not know spaces of the type {data['type']!r}")


def _box(data: Mapping[str, Any]) -> spaces.Box:
    shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
    if "low" in data:
        low, high = (np.array(data[end], dtype).reshape(shape) for end in ("low", "high"))
    else:
        whole = np.dtype(dtype).kind in "iu"
        ends = (np.iinfo(dtype).min, np.iinfo(dtype).max) if whole else (-np.inf, np.inf)
        low, high = (np.full(shape, end, dtype) for end in ends)
    return spaces.Box(low, high, shape, dtype.type)
