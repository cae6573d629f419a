"""Small runs of every registered method: what tests over METHODS are made of.

A new method is tested by its line in the registry: its kind gives it a small configuration.
"""

import dataclasses
from typing import Any

import pytest

from diffpolicy.trainers import METHODS, Method
from diffpolicy.trainers.config.options import flag_name, shapes_of
from diffpolicy.trainers.config.process import ChainLengthOptions, ProcessOptions

#: Methods that train a denoising chain.
DIFFUSION = [
    name
    for name, method in METHODS.items()
    if issubclass(method.config, (ProcessOptions, ChainLengthOptions))
]
ON_POLICY = [name for name, method in METHODS.items() if method.kind == "on-policy"]
OFF_POLICY = [name for name, method in METHODS.items() if method.kind == "off-policy"]
# One of each kind: tests that take seconds for every method run the others with the slow ones.
_FAST = ("diffppo", "dime")
#: All methods, for tests of seconds.
EACH = [pytest.param(m, marks=() if m in _FAST else pytest.mark.slow) for m in METHODS]
# Whatever the kind; options that a method does not have are left out.
_ANY: dict[str, Any] = {
    "env": "Pendulum-v1",
    "max_episode_steps": 20,
    "num_envs": 2,
    "denoising_steps": 2,
    "actor_hidden_sizes": (8,),
    "critic_hidden_sizes": (8,),
    "eval_episodes": 2,
    "logger": ("csv",),
}
# Iterations of 40 environment steps: two epochs over a rollout, or 10 updates from replay.
_OF_KIND: dict[str, dict[str, Any]] = {
    "on-policy": {"rollout_steps": 20, "epochs": 2, "total_frames": 120},
    "off-policy": {
        "learning_starts": 40,
        "iteration_frames": 40,
        "updates_per_step": 0.25,
        "batch_size": 8,
        "replay_size": 1_000,
        "entropy_interval": 4,
        "entropy_actions": 5,
        "total_frames": 120,
    },
}


def small_options(method: Method, **options: Any) -> dict[str, Any]:
    """Options of a small run; those given replace others, and must exist."""
    known = {field.name for field in dataclasses.fields(method.config)}
    common = {k: v for k, v in {**_ANY, **_OF_KIND[method.kind]}.items() if k in known}
    return {**common, **options}


def small_config(name: str, **options: Any) -> Any:
    """The configuration of a small run of a registered method."""
    return METHODS[name].config(**small_options(METHODS[name], **options))


def known_options(name: str, **options: Any) -> dict[str, Any]:
    """Those of the options that a method has."""
    known = {field.name for field in dataclasses.fields(METHODS[name].config)}
    return {k: v for k, v in options.items() if k in known}


def words(method: Method, options: dict[str, Any]) -> list[str]:
    """The command line of options."""
    shapes = shapes_of(method.config)
    line: list[str] = []
    for name, value in options.items():
        flag, shape = flag_name(name), shapes[name]
        if shape.kind is bool:
            line.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple) and shape.length is None:
            line += [word for item in value for word in (flag, str(item))]
        else:
            line += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return line


def small_words(name: str, **options: Any) -> list[str]:
    """The command line of a small run of a registered method."""
    return words(METHODS[name], small_options(METHODS[name], **options))
