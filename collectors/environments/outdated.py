"""Environments that Gymnasium lists and cannot build: old versions, missing packages."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from diffpolicy.errors import ArgumentError

_MUJOCO = "gymnasium.envs.mujoco"
# They need mujoco-py, which is not maintained any more.
_OLD = (2, 3)


def check_version(name: str, env_id: str) -> None:
    """Raise ArgumentError for an old version of a MuJoCo task, with the one to use.

    Args:
        name: what the error calls it.
        env_id: a registered id.
    """
    spec = gym.registry[env_id]
    same = [
        other
        for other in gym.registry.values()
        if (other.namespace, other.name) == (spec.namespace, spec.name)
    ]
    newest = max(same, key=lambda other: other.version or 0)
    if spec.version not in _OLD or not str(newest.entry_point).startswith(_MUJOCO):
        return
    raise ArgumentError(
        "name",
        name,
        f"is a version that needs mujoco-py, which is not maintained any more; use {newest.id}.",
    )


def built(name: str, build: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """What ``build`` returns.

    Raises:
        ArgumentError: it needs a package that is not installed; Gymnasium says which.
    """
    try:
        return build()
    except gym.error.DependencyNotInstalled as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise ArgumentError("name", name, f"cannot be built: {words}.") from error
