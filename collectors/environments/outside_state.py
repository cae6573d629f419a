"""State that environments keep outside of themselves: on their classes and in their modules.

A checkpoint holds what environments keep in their attributes. A counter on the class, or a
generator in the module, belongs to the process instead: a run that goes on in another process
starts it anew. This cannot be mended from here, but it can be noticed.
"""

import hashlib
import inspect
import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

# Libraries whose own caches and registries do not decide what an environment does.
_LIBRARIES = frozenset(
    {"builtins", "abc", "typing", "gymnasium", "shimmy", "dm_control", "dm_env", "mujoco", "numpy"}
)
_CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
_DESCRIPTORS = (property, staticmethod, classmethod, types.MemberDescriptorType)
# A module may refer to a world of objects; what is further away is not looked at.
_LARGEST = 20_000


def outside_state(envs: Sequence[gym.Env[Any, Any]]) -> dict[str, str]:
    """Fingerprints of what the classes of environments and their modules hold.

    Args:
        envs: environments with their wrappers.

    Returns:
        For every attribute of a class and every global variable of its module, by a name such as
        ``Walker.steps`` or ``walkers.generator``, a text that changes when its value does.
    """
    found: dict[str, str] = {}
    for owner in _classes(envs):
        if owner.__module__.partition(".")[0] in _LIBRARIES:
            continue
        for name, value in list(vars(owner).items()):
            if not (name.startswith("__") or isinstance(value, (*_CODE, *_DESCRIPTORS))):
                found[f"{owner.__qualname__}.{name}"] = _fingerprint(value)
        module = sys.modules.get(owner.__module__)
        for name, value in list(vars(module).items()) if module is not None else ():
            if not (name.startswith("__") or isinstance(value, _CODE)):
                found[f"{owner.__module__}.{name}"] = _fingerprint(value)
    return found


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names whose fingerprints differ, or that are in one of the two only, in order."""
    names = before.keys() | after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))


def _classes(envs: Sequence[gym.Env[Any, Any]]) -> Iterator[type]:
    """The classes of environments and their wrappers, with all their bases, each once."""
    seen = set()
    for env in envs:
        layer: Any = env
        while layer is not None:
            for owner in inspect.getmro(type(layer)):
                if owner not in seen:
                    seen.add(owner)
                    yield owner
            layer = layer.env if isinstance(layer, gym.Wrapper) else None


def _fingerprint(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    seen: set[int] = set()

    def visit(item: Any) -> None:
        digest.update(f"{type(item).__qualname__}:".encode())
        if isinstance(item, (np.ndarray, np.generic, Tensor)):
            array = np.asarray(item.detach().cpu() if isinstance(item, Tensor) else item)
            content = (
                repr(array) if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
            )
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(content.encode() if isinstance(content, str) else content)
        elif isinstance(item, np.random.Generator):
            digest.update(repr(item.bit_generator.state).encode())
        elif isinstance(item, np.random.RandomState):
            digest.update(repr(item.get_state()).encode())
        elif isinstance(item, random.Random):
            digest.update(repr(item.getstate()).encode())
        elif isinstance(item, (*_CODE, gym.Env, gym.Space)):
            # Environments and spaces have a state of their own; code has none.
            digest.update(str(getattr(item, "__qualname__", "")).encode())
        elif id(item) in seen or len(seen) > _LARGEST:
            digest.update(b"again")
        elif isinstance(item, Mapping):
            seen.add(id(item))
            for key, content in list(item.items()):
                visit(key)
                visit(content)
        elif isinstance(item, (list, tuple, deque)):
            seen.add(id(item))
            for content in list(item):
                visit(content)
        elif hasattr(item, "__dict__"):
            seen.add(id(item))
            visit(vars(item))
        else:
            # Numbers and text, sets, and what shows its state, as itertools.count does.
            digest.update(repr(item).encode())

    visit(value)
    return digest.hexdigest()
