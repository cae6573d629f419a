"""Copies of a Gymnasium environment, stepped together, as a TorchRL environment."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from collectors.environments.frames import FramesAsChannels
from collectors.environments.outside_state import changed, outside_state
from collectors.environments.spaces import (
    EPISODE_REWARD_KEY,
    STEP_COUNT_KEY,
    Actions,
    Entry,
    observation_entries,
)
from diffpolicy.errors import ArgumentError


class GymnasiumEnv(EnvBase):
    """Copies of one Gymnasium environment, stepped one after the other in this process.

    Every row is a real transition: a finished copy is reset when TorchRL asks for it, and
    ``("next", "observation")`` of its last row is the simulator's last observation.

    Observations have one place of their own, ``"observation"``: a tensor ``[num_envs, F]``, or a
    TensorDict with the entries of a dictionary. So no name of an entry can be that of something
    else. See :func:`collectors.observation_entries` for what becomes of each space.

    ``"episode_reward"`` and ``"step_count"``, both ``[num_envs, 1]``, are sums since the reset of a
    copy, as those of TorchRL's ``RewardSum`` and ``StepCounter``, without two transforms that go
    through the rows of every step once more.

    Simulators and rows share no memory: a copy gets its action as an array of its own, in the type
    and inside of the bounds of its space, and what it returns is copied at once.

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
        entries: what is read of an observation, which may be a history.
        frames: how many observations it is a history of; 1 without one.
        frame_entries: what is read of each of these.
        actions: how actions get to the copies.
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
        # No device: with one TorchRL would move every step to where it is already, which costs
        # 15 % of the frame rate.
        super().__init__(device=None, batch_size=[num_envs])
        self._owned = owned
        self.envs: list[gym.Env[Any, Any]] = [] if first is None else [first]
        try:
            while len(self.envs) < num_envs:
                self.envs.append(make())
            copy = self.envs[0]
            _check_interface(name, copy)
            self.entries = observation_entries(name, copy.observation_space, observation_keys)
            self.frames, self.frame_entries = 1, self.entries
            if isinstance(copy, FramesAsChannels):
                self.frames = copy.count
                self.frame_entries = observation_entries(name, copy.frame_space, observation_keys)
            self.actions = Actions.of(name, copy.action_space)
        except BaseException:
            self._close_copies()
            raise
        self._make_specs(num_envs)
        # TorchRL takes environments for closed that are not wrapped in its own way.
        self.is_closed = False
        self._outside = outside_state(self.envs)

    def changed_outside(self) -> list[str]:
        """Names of what has changed on the classes of the copies, or in their modules.

        It has done so since the copies were built, and belongs to the process: ``Walker.steps``
        is an attribute of the class ``Walker``, ``walkers.generator`` one of the module.
        """
        return changed(self._outside, outside_state(self.envs))

    def _make_specs(self, num_envs: int) -> None:
        low, high = (torch.from_numpy(b) for b in (self.actions.low, self.actions.high))
        self.action_spec = Bounded(
            low.expand(num_envs, -1), high.expand(num_envs, -1), dtype=torch.float32
        )
        self.observation_spec = Composite(shape=[num_envs])
        for entry in self.entries:
            dtype = torch.uint8 if entry.dtype is np.uint8 else torch.float32
            self.observation_spec[entry.key] = Unbounded((num_envs, *entry.shape), dtype=dtype)
        self.observation_spec[EPISODE_REWARD_KEY] = Unbounded((num_envs, 1))
        self.observation_spec[STEP_COUNT_KEY] = Unbounded((num_envs, 1), dtype=torch.int64)
        self.reward_spec = Unbounded((num_envs, 1))
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool)
        names = ("done", "terminated", "truncated")
        self.done_spec = Composite({key: flag.clone() for key in names}, shape=[num_envs])

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
        rows = _Rows(self.entries, len(self.envs))
        with np.errstate(over="ignore"):
            for index, env in enumerate(self.envs):
                if chosen is None or bool(chosen[index]):
                    rows.reset(index, env.reset(**_for_copy(index, kwargs)))
        # TorchRL keeps the entries of the copies that go on as they are.
        return rows.started()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = self.actions.to_environment(_array(tensordict.get("action")))
        chosen = tensordict.get("_step", None)
        rows = _Rows(self.entries, len(self.envs))
        # What float32 cannot hold becomes infinite, and is refused where the rollout is read.
        with np.errstate(over="ignore"):
            for index, env in enumerate(self.envs):
                if chosen is None or bool(chosen[index]):
                    rows.step(index, env.step(actions[index].copy()))
        if chosen is None:
            return rows.stepped(tensordict)
        # A copy that waits stays where it is.
        skipped = self._skip_tensordict(tensordict)
        return rows.stepped(tensordict).where(chosen.reshape(self.batch_size), skipped)


class EnvLayer(EnvBase):
    """An environment around another one, ``base_env``, which holds all of its state."""

    base_env: EnvBase


def gymnasium_env(env: EnvBase) -> GymnasiumEnv | None:
    """The Gymnasium environments inside of all transforms; None if there are others."""
    while isinstance(env, (TransformedEnv, EnvLayer)):
        env = env.base_env
    return env if isinstance(env, GymnasiumEnv) else None


class _Rows:
    """One row for each copy, in fresh memory."""

    def __init__(self, entries: Sequence[Entry], num_envs: int) -> None:
        self._entries = entries
        self._observations = [np.zeros((num_envs, *e.shape), e.dtype) for e in entries]
        self._rewards = np.zeros(num_envs, np.float32)
        self._terminated = np.zeros(num_envs, np.bool_)
        self._truncated = np.zeros(num_envs, np.bool_)

    def observe(self, index: int, observation: Any) -> None:
        """Take what a copy observes."""
        for entry, rows in zip(self._entries, self._observations, strict=True):
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
        self._rewards[index] = _number("reward", reward)
        self._terminated[index] = _number("terminated", terminated)
        self._truncated[index] = _number("truncated", truncated)

    def started(self) -> TensorDictBase:
        """All rows at the start of an episode."""
        zeros = torch.zeros(len(self._rewards), 1, dtype=torch.int64)
        return self._tensordict({EPISODE_REWARD_KEY: zeros.float(), STEP_COUNT_KEY: zeros})

    def stepped(self, before: TensorDictBase) -> TensorDictBase:
        """All rows after a step from ``before``."""
        reward, steps = _column(self._rewards), before.get(STEP_COUNT_KEY, None)
        return self._tensordict(
            {
                "reward": reward,
                EPISODE_REWARD_KEY: before.get(EPISODE_REWARD_KEY, 0.0) + reward,
                STEP_COUNT_KEY: torch.ones_like(reward).long() if steps is None else steps + 1,
            }
        )

    def _tensordict(self, out: dict[NestedKey, Tensor]) -> TensorDictBase:
        for entry, rows in zip(self._entries, self._observations, strict=True):
            out[entry.key] = torch.from_numpy(rows)
        terminated, truncated = map(_column, (self._terminated, self._truncated))
        out |= {
            "done": terminated | truncated,
            "terminated": terminated,
            "truncated": truncated,
        }
        return TensorDict(out, [len(self._rewards)])


def _column(values: NDArray[Any]) -> Tensor:
    """``[num_envs, 1]``, in the memory of ``values`` ``[num_envs]``."""
    return torch.from_numpy(values[:, None])


def _for_copy(index: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``reset`` for one copy; none are made up, because some are a request."""
    seed = arguments.get("seed")
    return arguments if seed is None else {**arguments, "seed": seed + index}


def _array(action: Tensor) -> NDArray[Any]:
    exact = action.dtype in (torch.float32, torch.float64)
    array: NDArray[Any] = (action if exact else action.float()).detach().cpu().numpy()
    return array


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
