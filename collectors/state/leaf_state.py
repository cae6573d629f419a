"""State of arrays and random generators, as data that can be loaded without running code."""

import random
from typing import Any

import numpy as np
import torch

from collectors.errors import UnsupportedStateError

#: Types that :func:`save_leaf` takes.
LEAVES = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random)
_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (
        np.random.MT19937,
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.Philox,
        np.random.SFC64,
    )
}


def save_leaf(value: Any, path: str) -> dict[str, Any]:
    """Return a copy of an array or the state of a generator as plain data.

    Raises:
        UnsupportedStateError: an array of Python objects, one on memory that something else
            manages, or a generator of an unknown kind.
    """
    if isinstance(value, np.ndarray):
        return _save_array(value, path)
    if isinstance(value, np.random.Generator):
        if type(value.bit_generator).__name__ not in _BIT_GENERATORS:
            raise UnsupportedStateError(
                f"the state of {path} cannot be saved: it is a generator of the kind "
                f"{type(value.bit_generator).__name__}; known are {', '.join(_BIT_GENERATORS)}."
            )
        return {"generator": _save_arrays(value.bit_generator.state, path)}
    if isinstance(value, np.random.RandomState):
        return {"random_state": _save_arrays(value.get_state(legacy=False), path)}
    return {"random": value.getstate()}


def load_leaf(saved: dict[str, Any]) -> Any:
    """Return a new array or generator like the one that was saved."""
    if "bytes" in saved:
        return _load_array(saved)
    if "generator" in saved:
        state = _load_arrays(saved["generator"])
        bit_generator = _BIT_GENERATORS[state["bit_generator"]]()
        bit_generator.state = state
        return np.random.Generator(bit_generator)
    if "random_state" in saved:
        random_state = np.random.RandomState()
        random_state.set_state(_load_arrays(saved["random_state"]))
        return random_state
    generator = random.Random()
    generator.setstate(saved["random"])
    return generator


def save_view(view: np.ndarray) -> dict[str, Any]:
    """Return where ``view`` lies in its base."""
    base = view.base
    assert base is not None
    return {
        "dtype": view.dtype.str,
        "shape": view.shape,
        "strides": view.strides,
        "offset": _address(view) - _address(base),
    }


def load_view(saved: dict[str, Any], base: np.ndarray) -> np.ndarray:
    """Return the view of ``base`` that was saved."""
    memory = np.ndarray((base.nbytes,), np.uint8, base if base.flags.c_contiguous else base.T)
    return np.ndarray(saved["shape"], _dtype(saved), memory, saved["offset"], saved["strides"])


def _save_array(array: np.ndarray, path: str) -> dict[str, Any]:
    if array.base is not None:
        raise UnsupportedStateError(
            f"the state of {path} cannot be saved: it is an array on the memory of a "
            f"{type(array.base).__name__}; keep a copy of it there."
        )
    if array.dtype.hasobject or array.dtype.names is not None:
        raise UnsupportedStateError(
            f"the state of {path} cannot be saved: it is an array of the type {array.dtype}; keep "
            "arrays of numbers there."
        )
    return {
        "dtype": array.dtype.str,
        "shape": array.shape,
        "order": "F" if array.flags.fnc else "C",
        "bytes": torch.from_numpy(np.frombuffer(bytearray(array.tobytes("A")), np.uint8)),
    }


def _load_array(saved: dict[str, Any]) -> np.ndarray:
    array = np.empty(saved["shape"], _dtype(saved), order=saved["order"])
    flat = array.reshape(-1, order="A")
    flat.view(np.uint8)[...] = saved["bytes"].numpy()
    return array


def _dtype(saved: dict[str, Any]) -> np.dtype[Any]:
    """Return the type of an array; never one of objects, whose addresses could be forged."""
    dtype = np.dtype(saved["dtype"])
    if dtype.hasobject:
        raise UnsupportedStateError(
            f"the saved state is damaged: it holds an array of the type {dtype}."
        )
    return dtype


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _save_arrays(state: Any, path: str) -> Any:
    """Return the state of a generator with its arrays saved."""
    if isinstance(state, dict):
        return {key: _save_arrays(value, path) for key, value in state.items()}
    return {"array": _save_array(state, path)} if isinstance(state, np.ndarray) else state


def _load_arrays(saved: Any) -> Any:
    if not isinstance(saved, dict):
        return saved
    if "array" in saved:
        return _load_array(saved["array"])
    return {key: _load_arrays(value) for key, value in saved.items()}
