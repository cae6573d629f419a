"""Copies of a Gymnasium environment, stepped together, as a TorchRL environment."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from collectors.environments.frames import FramesAsChannels
from collectors.environments.outside_state import changed, outside_state
from collectors.environments.simulator_env import Rows, SimulatorEnv, action_array, simulator_env
from collectors.environments.spaces import Entry, observation_entries
from diffpolicy.errors import ArgumentError


class GymnasiumEnv(SimulatorEnv):
    """Copies of one Gymnasium environment, stepped one after the other in this process.

    A copy gets its action as an array of its own, in the type and inside of the bounds of its
    space, and what it returns is copied at once.

    Args:
        make: builds one copy.
        num_envs: number of copies; the batch size is ``[num_envs]``.
        name: what errors call the environment.
        observation_keys: entries to read, by names such as ``body.speed``; by default all.
        first: the first copy, if it has been built already.
        owned: whether the copies are closed with this environment.

    Raises:
        ArgumentError: its observations or actions are not supported, or it has the interface of
            old versions of Gym.

    Attributes:
        envs: the copies.
    """

    def __init__(
        self,
        make: Callable[[], gym.Env[Any, Any]],
        num_envs: int,
        *,
        name: str,
        observation_keys: Sequence[str] | None = None,
        first: gym.Env[Any, Any] | None = None,
        owned: bool = True,
    ) -> None:
        super().__init__(num_envs)
        self._owned = owned
        self.envs: list[gym.Env[Any, Any]] = [] if first is None else [first]
        try:
            while len(self.envs) < num_envs:
                self.envs.append(make())
            copy = self.envs[0]
            _check_interface(name, copy)
            self._describe(name, copy.observation_space, copy.action_space, observation_keys)
            if isinstance(copy, FramesAsChannels):
                self.frames = copy.count
                self.frame_entries = observation_entries(name, copy.frame_space, observation_keys)
        except BaseException:
            self._close_copies()
            raise
        self._outside = outside_state(self.envs)

    def changed_outside(self) -> list[str]:
        """Names of what has changed on the classes of the copies, or in their modules.

        It has done so since the copies were built, and belongs to the process: ``Walker.steps``
        is an attribute of the class ``Walker``, ``walkers.generator`` one of the module.
        """
        return changed(self._outside, outside_state(self.envs))

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close all copies; then raise what the first one that could not be closed has raised."""
        super().close(raise_if_closed=raise_if_closed)
        errors = self._close_copies()
        if errors:
            raise errors[0]

    def _close_copies(self) -> list[Exception]:
        copies, self.envs = self.envs, []
        errors: list[Exception] = []
        if not self._owned:
            return errors
        for env in copies:
            try:
                env.close()
            except Exception as error:  # whatever a simulator may raise
                errors.append(error)
        return errors

    def _set_seed(self, seed: int | None) -> None:
        for index, env in enumerate(self.envs):
            env.reset(seed=None if seed is None else seed + index)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        chosen = None if tensordict is None else tensordict.get("_reset", None)
        rows = _CopyRows(self.entries, len(self.envs))
        with np.errstate(over="ignore"):
            for index, env in enumerate(self.envs):
                if chosen is None or bool(chosen[index]):
                    rows.reset(index, env.reset(**_for_copy(index, kwargs)))
        # TorchRL keeps the entries of the copies that go on as they are.
        return rows.started()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = self.actions.to_environment(action_array(tensordict.get("action")))
        chosen = tensordict.get("_step", None)
        rows = _CopyRows(self.entries, len(self.envs))
        # What float32 cannot hold becomes infinite, and is refused where the rollout is read.
        with np.errstate(over="ignore"):
            for index, env in enumerate(self.envs):
                if chosen is None or bool(chosen[index]):
                    rows.step(index, env.step(actions[index].copy()))
        return self._waiting(rows.stepped(tensordict), tensordict, chosen)


def gymnasium_env(env: EnvBase) -> GymnasiumEnv | None:
    """The Gymnasium environments inside of all transforms; None if there are others."""
    own = simulator_env(env)
    return own if isinstance(own, GymnasiumEnv) else None


class _CopyRows(Rows):
    """Rows that are written one copy after the other."""

    def __init__(self, entries: Sequence[Entry], num_envs: int) -> None:
        super().__init__(entries, num_envs)
        self._read = list(zip(entries, self.observations, strict=True))

    def observe(self, index: int, observation: Any) -> None:
        """Take what a copy observes."""
        for entry, rows in self._read:
            entry.write(observation, rows[index])

    def reset(self, index: int, result: Any) -> None:
        """Take what the reset of a copy has returned."""
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(
                "reset() of the environment must return an observation and an info, got "
                f"{_describe(result)}; see Gymnasium's guide for old environments."
            )
        self.observe(index, result[0])

    def step(self, index: int, result: Any) -> None:
        """Take what the step of a copy has returned."""
        if not (isinstance(result, tuple) and len(result) == 5):
            raise ValueError(
                "step() of the environment must return observation, reward, terminated, truncated "
                f"and info, got {_describe(result)}; see Gymnasium's guide for old environments."
            )
        observation, reward, terminated, truncated, _ = result
        self.observe(index, observation)
        self.rewards[index] = _number("reward", reward)
        self.terminated[index] = _number("terminated", terminated)
        self.truncated[index] = _number("truncated", truncated)


def _for_copy(index: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``reset`` for one copy; none are made up, because some are a request."""
    seed = arguments.get("seed")
    return arguments if seed is None else {**arguments, "seed": seed + index}


def _number(name: str, value: Any) -> Any:
    """A number or a flag, also where it comes as an array of one."""
    if isinstance(value, (float, int, np.generic)):
        return value
    array: NDArray[Any] = np.asarray(value.detach() if isinstance(value, Tensor) else value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise ValueError(f"the environment's {name} must be one number, got {_describe(value)}.")
    return array.reshape(())


def _describe(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values"
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"an array of the shape {tuple(shape)}"


def _check_interface(name: str, env: gym.Env[Any, Any]) -> None:
    """Raise ArgumentError for ``reset()`` without a seed, as Gym before 0.26 had it."""
    parameters = inspect.signature(env.unwrapped.reset).parameters.values()
    if not any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ArgumentError(
            "name",
            name,
            "has a reset() that takes no seed, as Gym had it before version 0.26; give it the "
            "arguments seed=None and options=None, and call super().reset(seed=seed).",
        )
