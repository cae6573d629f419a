"""State of simulators: MuJoCo, the DeepMind Control Suite, and environments in plain Python."""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv

from collectors.errors import UnsupportedStateError
from collectors.state.object_state import ObjectLoader, ObjectSaver, Rules, Special, class_name

# What Gymnasium keeps of how an environment was made.
_CONSTRUCTION = {
    "env_fns",
    "spec",
    "metadata",
    "_metadata",
    "_saved_kwargs",
    "_cached_spec",
    "_ezpickle_args",
    "_ezpickle_kwargs",
    "mujoco_renderer",
}
_SPACE = {"_np_random", "spaces"}  # only what sampling changes
# dm_control's Physics is its data; the rest are views of that, warnings, and rendering contexts.
_PHYSICS = {
    "_contexts",
    "_contexts_lock",
    "_named",
    "_new_warnings",
    "_warnings",
    "_warnings_before",
    "_warnings_cause_exception",
}
# Indices are never restored: wrong ones, from a file that was tampered with, crash the process.
_MASKS = ("geom_contype", "geom_conaffinity")
_SHAPES = ("mesh_", "skin_", "bvh_", "oct_")
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


#: An environment, or several of them that may share objects.
Simulators = gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | Sequence[gym.Env[Any, Any]]


def simulator_state(env: Simulators) -> dict[str, Any]:
    """Return the state of an environment, its wrappers, copies and generators.

    Kept are all attributes of the environment and its wrappers (and of plain objects in them):
    numbers, strings, NumPy arrays, generators, and containers of these; what is shared stays so.
    Functions, classes and spaces must be the same where the state is loaded. MuJoCo simulations
    are kept with what tasks change in their models; contacts are found again when loading.

    Args:
        env: an environment of this process, or several as a list or a ``SyncVectorEnv``.

    Returns:
        Plain data: loadable with ``torch.load(weights_only=True)``, and independent of what the
        environment does next.

    Raises:
        UnsupportedStateError: an attribute is none of these; names its class and the attribute.
    """
    _check_in_process(env)
    return {"environment": ObjectSaver(_RULES).save(_copies(env), type(env).__name__)}


def load_simulator_state(env: Simulators, state: dict[str, Any]) -> None:
    """Let an environment continue where another one was when its state was saved.

    Args:
        env: built in the same way as the other one; the seed does not matter.
        state: from :func:`simulator_state`.

    Raises:
        UnsupportedStateError: ``env`` is another environment. It has not been changed then.
    """
    _check_in_process(env)
    loader = ObjectLoader(_RULES)
    loader.load(state["environment"], _copies(env), type(env).__name__)
    loader.finish()


def _copies(env: Simulators) -> Any:
    return env if isinstance(env, (gym.Env, VectorEnv)) else list(env)


def _check_in_process(env: object) -> None:
    if isinstance(env, VectorEnv) and not isinstance(env, SyncVectorEnv):
        raise UnsupportedStateError(
            f"the state of {class_name(env)} cannot be saved, because its copies do not run in "
            "this process; use gymnasium.vector.SyncVectorEnv, as collectors.make_env does."
        )


def _attributes(value: object) -> Iterable[str]:
    if isinstance(value, gym.Space):
        return [name for name in vars(value) if name in _SPACE]
    excluded = _CONSTRUCTION if isinstance(value, (gym.Env, VectorEnv)) else set()
    if _is_a(value, "dm_control.mujoco.engine", "Physics"):
        excluded = _PHYSICS
    return [name for name in vars(value) if name not in excluded]


def _special(value: Any) -> Special | None:
    if isinstance(value, mujoco.MjModel):
        return Special(dict, _load_nothing)  # it is saved with its data
    if isinstance(value, mujoco.MjData):
        return _physics(value.model, value)
    if _is_a(value, "dm_control.mujoco.wrapper.core", "MjData"):
        return _physics(value.model.ptr, value.ptr)
    return None


_RULES = Rules(_attributes, _special)


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether ``value`` is of a class of dm_control, which need not be installed."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _load_nothing(saved: dict[str, Any]) -> Callable[[], None]:
    return lambda: None


def _physics(model: Any, data: Any) -> Special:
    return Special(partial(_save_physics, model, data), partial(_load_physics, model, data))


def _save_physics(model: Any, data: Any) -> dict[str, Any]:
    if model.nplugin or model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
        feature = "engine plugins" if model.nplugin else "sleeping bodies"
        raise UnsupportedStateError(
            f"the state of a MuJoCo model with {feature} cannot be saved; use one without them."
        )
    integration = np.empty(mujoco.mj_stateSize(model, _STATE))
    mujoco.mj_getState(model, data, integration, _STATE)
    return {
        "integration": torch.from_numpy(integration),
        "model": _pack(_model_arrays(model)),
        "data": _pack(_data_arrays(model, data)),
        "options": _options(model),
    }


def _load_physics(model: Any, data: Any, saved: dict[str, Any]) -> Callable[[], None]:
    for part, arrays in (("model", _model_arrays(model)), ("data", _data_arrays(model, data))):
        if saved[part]["layout"] != _layout(arrays):
            raise UnsupportedStateError(
                "the saved state does not fit: it is that of another MuJoCo model, or of another "
                "version of MuJoCo; load it into an environment that was built in the same way."
            )
    return partial(_set_physics, model, data, saved)


def _set_physics(model: Any, data: Any, saved: dict[str, Any]) -> None:
    _unpack(saved["model"], _model_arrays(model))
    for name, value in saved["options"].items():
        setattr(model.opt, name, value)
    mujoco.mj_setState(model, data, saved["integration"].numpy(), _STATE)
    # Contacts and constraints follow from the state. So does the rest, but it may be behind: after
    # mj_step positions of bodies are those before the last substep, and environments read them.
    mujoco.mj_step1(model, data)
    _unpack(saved["data"], _data_arrays(model, data))


def _options(model: Any) -> dict[str, Any]:
    """Physical constants and solver settings, which tasks may vary."""
    names = [name for name in dir(model.opt) if not name.startswith("_")]
    values = {name: getattr(model.opt, name) for name in names}
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in values.items()
        if isinstance(value, (int, float, np.ndarray))
    }


def _model_arrays(model: Any) -> dict[str, np.ndarray]:
    """Arrays of the model that a task may change: no textures, no meshes, no indices."""
    arrays = _values(model).items()
    return {
        name: array
        for name, array in arrays
        if name in _MASKS or (array.dtype.kind == "f" and not name.startswith(_SHAPES))
    }


def _data_arrays(model: Any, data: Any) -> dict[str, np.ndarray]:
    """Values whose number is that of the model's parts: no contacts, constraints or indices."""
    sized = {name for name, array in _values(mujoco.MjData(model)).items() if array.size}
    return {
        name: array
        for name, array in _values(data).items()
        if name in sized and array.dtype.kind in ("f", "b")
    }


def _values(struct: Any) -> dict[str, np.ndarray]:
    values = {name: getattr(struct, name) for name in dir(struct) if not name.startswith("_")}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _layout(arrays: dict[str, np.ndarray]) -> str:
    return ",".join(f"{name}{list(array.shape)}{array.dtype}" for name, array in arrays.items())


def _pack(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    data = bytearray(b"".join(array.tobytes() for array in arrays.values()))
    return {"layout": _layout(arrays), "bytes": torch.frombuffer(data, dtype=torch.uint8)}


def _unpack(packed: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    data, start = packed["bytes"].numpy(), 0
    for array in arrays.values():
        saved = data[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        if not np.array_equal(saved, array):
            array[...] = saved
        start += array.nbytes
