"""From the name of an environment to what builds copies of it."""

import difflib
import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation

from collectors.environments.outdated import built, check_version
from diffpolicy.errors import ArgumentError

_SUITE = "dmc:"


def gymnasium_source(
    name: str, max_episode_steps: int | None, gym_kwargs: dict[str, Any]
) -> Callable[[], gym.Env[Any, Any]]:
    """Return what builds a copy of the environment ``name``.

    Args:
        name: a registered Gymnasium id, ``"module:Id-v0"`` to import the module first, or
            ``"dmc:domain-task"`` for a task of the DeepMind Control Suite.
        max_episode_steps: replaces the environment's own time limit.
        gym_kwargs: further arguments of the environment's constructor, and ``wrappers``.

    Raises:
        ArgumentError: there is no such environment, or what it needs is not installed.
    """
    arguments = dict(gym_kwargs)
    wrappers = list(arguments.pop("wrappers", ()))
    env_id = name
    if name.startswith(_SUITE):
        _check_suite_task(name)
        env_id = f"dm_control/{name.removeprefix(_SUITE)}-v0"
        # Scalars (the height of walker) and vectors become one vector, in the order of their names.
        wrappers.insert(0, FlattenObservation)
        if max_episode_steps is not None:
            # The task's own limit ends an episode too, and Gymnasium's can only come before it.
            limit = {"time_limit": math.inf}
            arguments["task_kwargs"] = limit | arguments.pop("task_kwargs", {})
    else:
        _check_registered(name)
    return partial(_make, env_id, max_episode_steps, wrappers, arguments)


def _make(
    env_id: str,
    max_episode_steps: int | None,
    wrappers: Sequence[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]],
    arguments: dict[str, Any],
) -> gym.Env[Any, Any]:
    make = partial(gym.make, env_id, max_episode_steps=max_episode_steps, **arguments)
    env = built(env_id, make)
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def _check_registered(name: str) -> None:
    """Raise ArgumentError with close matches unless ``name`` is a registered Gymnasium id."""
    module, _, env_id = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ArgumentError(
                "name",
                name,
                f"names the module {module!r}, which cannot be imported ({error}); install it, or "
                "give an id without a module.",
            ) from error
    if env_id in gym.registry:
        check_version(name, env_id)
        return
    hint = _close_matches(env_id, gym.registry) or "gymnasium.pprint_registry() lists the known ids"
    problem = f"is not a registered Gymnasium environment id; {hint}."
    if not module:
        problem += (
            f" An id of your own is named 'module:{env_id}': the module that registers it is then "
            "imported wherever the environment is built, in worker processes, too."
        )
    raise ArgumentError("name", name, problem)


def _check_suite_task(name: str) -> None:
    """Raise ArgumentError with close matches unless ``name`` is a task that can be learned."""
    try:
        with _quiet_import():
            suite = importlib.import_module("dm_control.suite")
            importlib.import_module("shimmy")  # registers the tasks with Gymnasium
    except ModuleNotFoundError as error:
        raise ArgumentError(
            "name",
            name,
            f"is a task of the DeepMind Control Suite, which is not installed ({error}); "
            "pip install 'diffpolicy[dmc]'.",
        ) from error
    tasks = [f"{_SUITE}{domain}-{task}" for domain, task in suite.ALL_TASKS if domain != "lqr"]
    if name in tasks:
        return
    if name.startswith(f"{_SUITE}lqr-"):
        raise ArgumentError(
            "name",
            name,
            "is not supported: lqr has no bounds on its actions, and another model whenever it is "
            f"built; choose another domain, for example {_SUITE}point_mass-easy.",
        )
    domains = ", ".join(dict.fromkeys(task.split("-")[0].removeprefix(_SUITE) for task in tasks))
    hint = _close_matches(name, tasks) or f"the domains are {domains}"
    raise ArgumentError("name", name, f"is not a task of the DeepMind Control Suite; {hint}.")


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Keep what importing the suite does to warnings and logging inside the context.

    Without a display GLFW warns, although nothing is going to be drawn, and absl gives the root
    logger a handler, which then prints the records of every other package.
    """
    logger = logging.getLogger()
    handlers = list(logger.handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.handlers[:] = handlers


def _close_matches(name: str, known: Iterable[str]) -> str:
    """Say which of the ``known`` names could be meant; empty if none."""
    by_lower_case = {key.lower(): key for key in known}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.6)
    if not matches:
        return ""
    return "close matches: " + ", ".join(by_lower_case[match] for match in matches)
