"""From the name of an environment, a factory or an instance to what builds copies of it."""

import importlib
import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation, TimeLimit
from torchrl.envs import EnvBase, StepCounter, Transform, TransformedEnv

from collectors.environments.outdated import built, check_version
from diffpolicy.errors import ArgumentError
from diffpolicy.names import close_matches, imported, named_object, shown

AnyEnv: TypeAlias = gym.Env[Any, Any] | EnvBase
#: What :func:`collectors.make_env` takes: a name, a factory, or an environment.
EnvLike: TypeAlias = str | Callable[..., AnyEnv] | AnyEnv
#: Begins the names of tasks of the DeepMind Control Suite.
SUITE = "dmc:"


@dataclass(frozen=True)
class Source:
    """Where copies of an environment come from.

    Attributes:
        name: what errors call it.
        make: builds one environment: a Gymnasium environment, or a TorchRL one, batched or not. It
            takes ``num_envs`` where ``sized``.
        arguments: what ``make`` passes on, for errors.
        wrappers: Gymnasium's wrappers, or TorchRL's transforms, put around it in this order.
        instance: the one environment there is; None where ``make`` builds as many as are wanted.
        sized: whether ``make`` builds batches of any size.
    """

    name: str
    make: Callable[..., AnyEnv]
    arguments: Mapping[str, Any]
    wrappers: tuple[Callable[[Any], Any], ...] = ()
    instance: AnyEnv | None = None
    sized: bool = False

    def build(self, num_envs: int) -> AnyEnv:
        """One environment with its wrappers; where ``sized``, a batch of ``num_envs``.

        Raises:
            ArgumentError: what was built is no environment.
        """
        try:
            env = self.make(num_envs=num_envs) if self.sized else self.make()
        except gym.error.DependencyNotInstalled as error:
            problem = f"needs a package that is not installed: {str(error).rstrip('.')}."
            raise ArgumentError("name", self.name, problem) from error
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            problem = f"do not suit {self.name}: {error}."
            raise ArgumentError("env_kwargs", self.arguments, problem) from error
        if not isinstance(env, (gym.Env, EnvBase)):
            vector = isinstance(env, gym.vector.VectorEnv)
            raise ArgumentError(
                "name",
                self.name,
                f"builds {'a vector environment' if vector else type(env).__name__}, but must "
                "build a gymnasium.Env (a single one: copies are made here) or a "
                "torchrl.envs.EnvBase.",
            )
        for wrapper in self.wrappers:
            env = _wrapped(env, wrapper)
        return env


def environment_source(
    env: EnvLike,
    max_episode_steps: int | None,
    arguments: Mapping[str, Any],
    wrappers: Sequence[str | Callable[[Any], Any]],
) -> Source:
    """Return what builds copies of an environment.

    Args:
        env: an id, ``"module:Id-v0"``, ``"module:factory"``, ``"dmc:domain-task"``, a factory, or
            an environment.
        max_episode_steps: time limit of the episodes of registered environments; others get it
            from a wrapper.
        arguments: of the constructor of the environment, or of the factory.
        wrappers: callables that take an environment, or their names, ``"module:Wrapper"``.

    Raises:
        ArgumentError: there is no such environment, or what it needs is not installed.
    """
    around = tuple(
        named_object(item, "wrappers") if isinstance(item, str) else item for item in wrappers
    )
    own = dict(arguments)
    if isinstance(env, str) and env.startswith(SUITE):
        return _suite_source(env, max_episode_steps, own, around)
    if isinstance(env, str):
        module, _, name = env.rpartition(":")
        loaded = imported(module, "name", env) if module else None
        factory = None if name in gym.registry else getattr(loaded, name, None)
        if not callable(factory):
            _check_registered(env, [] if loaded is None else vars(loaded))
            make = partial(gym.make, env, max_episode_steps=max_episode_steps, **own)
            return Source(env, partial(built, env, make), own, around)
        env, title = factory, env
    else:
        title = shown(env)
    if max_episode_steps is not None:
        around = (*around, partial(_limited, max_episode_steps))
    if isinstance(env, (gym.Env, EnvBase)):
        if own:
            problem = "is an environment that has been built; give a factory to pass env_kwargs."
            raise ArgumentError("name", title, problem)
        return Source(title, partial(_the, env), own, around, instance=env)
    if not callable(env):
        raise ArgumentError(
            "name",
            title,
            "must be an id, module:factory, a gymnasium.Env, a torchrl.envs.EnvBase, or a function "
            f"that returns one of these; got {type(env).__name__}.",
        )
    sized = _takes_num_envs(env, own)
    return Source(title, partial(env, **own), own, around, sized=sized)


def _suite_source(
    name: str,
    max_episode_steps: int | None,
    arguments: dict[str, Any],
    wrappers: tuple[Callable[[Any], Any], ...],
) -> Source:
    _check_suite_task(name)
    if max_episode_steps is not None:
        # The task's own limit ends an episode too, and Gymnasium's can only come before it.
        limit = {"time_limit": math.inf}
        arguments["task_kwargs"] = limit | arguments.pop("task_kwargs", {})
    env_id = f"dm_control/{name.removeprefix(SUITE)}-v0"
    make = partial(gym.make, env_id, max_episode_steps=max_episode_steps, **arguments)
    # Scalars (the height of walker) and vectors become one vector, in the order of their names.
    return Source(name, partial(built, name, make), arguments, (FlattenObservation, *wrappers))


def _wrapped(env: AnyEnv, wrapper: Callable[[Any], Any]) -> AnyEnv:
    if isinstance(wrapper, type) and issubclass(wrapper, Transform):
        return TransformedEnv(env, wrapper(), auto_unwrap=False)
    try:
        wrapped = wrapper(env)
    except TypeError as error:
        if not isinstance(env, gym.Env) and "gymnasium.Env" in str(error):
            problem = "is for an environment of Gymnasium, and this one is of TorchRL; give a "
            hint = "transform of TorchRL, for example torchrl.envs:RewardSum."
            raise ArgumentError("wrappers", shown(wrapper), problem + hint) from error
        if "argument" not in str(error):
            raise
        problem = f"cannot be called with an environment alone ({error}); name a function that can."
        raise ArgumentError("wrappers", shown(wrapper), problem) from error
    if not isinstance(wrapped, (gym.Env, EnvBase)):
        raise ArgumentError(
            "wrappers",
            shown(wrapper),
            f"returns {type(wrapped).__name__}; it must return the environment that it wraps.",
        )
    return wrapped


def _limited(steps: int, env: AnyEnv) -> AnyEnv:
    """The environment with episodes of at most so many steps."""
    if isinstance(env, gym.Env):
        return TimeLimit(env, steps)
    return TransformedEnv(env, StepCounter(max_steps=steps), auto_unwrap=False)


def _the(env: AnyEnv) -> AnyEnv:
    return env


def _takes_num_envs(factory: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    """Whether a factory has an argument ``num_envs`` that was not given."""
    try:
        # TorchRL's environments hide the signatures of their constructors.
        called = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # of builtins
        return False
    return "num_envs" in parameters and "num_envs" not in given


def _check_registered(name: str, also: Iterable[str]) -> None:
    """Raise ArgumentError with close matches unless ``name`` is a registered Gymnasium id.

    Args:
        name: the id, with its module if that has been given.
        also: further names that could be meant, those of the module.
    """
    module, _, env_id = name.rpartition(":")
    if env_id in gym.registry:
        check_version(name, env_id)
        return
    known = [*gym.registry, *(own for own in also if not own.startswith("_"))]
    hint = close_matches(env_id, known) or "gymnasium.pprint_registry() lists the known ids"
    problem = f"is not a registered Gymnasium environment id; {hint}."
    if module:
        problem = (
            f"is neither a registered Gymnasium environment id nor a function of {module}; {hint}."
        )
    else:
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
    tasks = [f"{SUITE}{domain}-{task}" for domain, task in suite.ALL_TASKS if domain != "lqr"]
    if name in tasks:
        return
    if name.startswith(f"{SUITE}lqr-"):
        raise ArgumentError(
            "name",
            name,
            "is not supported: lqr has no bounds on its actions, and another model whenever it is "
            f"built; choose another domain, for example {SUITE}point_mass-easy.",
        )
    domains = ", ".join(dict.fromkeys(task.split("-")[0].removeprefix(SUITE) for task in tasks))
    hint = close_matches(name, tasks) or f"the domains are {domains}"
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
