"""Environments that EnvPool runs: many copies stepped by threads of C++."""

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

from collectors.environments.simulator_env import Rows, SimulatorEnv, action_array
from collectors.environments.sources import SUITE, EnvLike, Source
from collectors.environments.spaces import observation_entries
from diffpolicy.errors import ArgumentError
from diffpolicy.names import close_matches, named_object, shown

#: Arguments of EnvPool that say how copies are run, and nothing about the task.
POOL_ARGUMENTS = ("num_threads", "thread_affinity_offset")
# Arguments that are set here.
_OWN = (
    "num_envs",
    "batch_size",
    "seed",
    "env_seed",
    "max_num_players",
    "max_episode_steps",
    "gym_reset_return_info",
)
_SEEDS = 2**31
# What tasks of the control suite observe in EnvPool and not in dm_control: entries of other tasks
# of the same domain.
_BALL = ("ball_state", "target_position")
_STATE = ("com_velocity", "extremities", "head_height", "joint_angles", "torso_vertical")
_NOT_OBSERVED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("dog-run", "dog-stand", "dog-trot", "dog-walk", "quadruped-escape"), _BALL),
    **dict.fromkeys(("quadruped-run", "quadruped-walk"), (*_BALL, "origin", "rangefinder")),
    **dict.fromkeys(("humanoid-run", "humanoid-stand", "humanoid-walk"), ("position",)),
    "humanoid-run_pure_state": _STATE,
    "quadruped-fetch": ("origin", "rangefinder"),
    "finger-spin": ("dist_to_target", "target_position"),
    "fish-upright": ("target",),
}
# No episode is as long: tasks without a limit have the largest integer of C.
_LONGEST = 2**30


@dataclass(frozen=True)
class PoolTask:
    """A task of EnvPool.

    Attributes:
        name: what errors call it.
        env_id: EnvPool's id.
        arguments: of the task and of the pool.
        max_episode_steps: length of an episode that is cut off.
    """

    name: str
    env_id: str
    arguments: Mapping[str, Any]
    max_episode_steps: int

    @property
    def suite_task(self) -> str | None:
        """``domain-task`` of the control suite, which observes one vector; None for others."""
        return self.name.removeprefix(SUITE) if self.name.startswith(SUITE) else None

    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """What a copy observes, and what it takes."""
        return _spaces(_envpool().make_spec(self.env_id, **self.arguments))

    def pool(self, seeds: Sequence[int]) -> Any:
        """Simulators with these seeds."""
        pool = _envpool().make_gymnasium(
            self.env_id,
            num_envs=len(seeds),
            seed=list(seeds),
            # EnvPool calls an episode that ends at its limit truncated, whatever ended it. With a
            # limit that is never reached, what it says to have ended has been ended by the task.
            max_episode_steps=min(self.max_episode_steps, _LONGEST) + 1,
            **self.arguments,
        )
        _spaces(pool)  # which it reads with the first row
        return pool


class EnvPoolEnv(SimulatorEnv):
    """Copies of a task of EnvPool, stepped together by its threads.

    EnvPool's own way to begin a new episode wastes a step on it, which ignores the action and earns
    nothing. Here copies are reset when TorchRL asks for it, those that have finished alone, and no
    row is of this kind.

    Seeds are fixed when a pool is built, so :meth:`set_seed` builds a new one, with the next reset.

    Args:
        task: what is simulated.
        num_envs: number of copies; the batch size is ``[num_envs]``.
        observation_keys: entries to read, by names such as ``body.speed``; by default all.

    Raises:
        ArgumentError: its observations or actions are not supported.

    Attributes:
        task: what is simulated.
    """

    def __init__(
        self, task: PoolTask, num_envs: int, observation_keys: Sequence[str] | None = None
    ) -> None:
        super().__init__(num_envs)
        self.task = task
        self._pool: Any = None
        self._seed: int | None = None
        space, actions = task.spaces()
        self._parts = None
        if task.suite_task is not None and isinstance(space, spaces.Dict):
            left_out = _NOT_OBSERVED.get(task.suite_task, ())
            observed = {key: space[key] for key in sorted(space) if key not in left_out}
            self._parts = observation_entries(task.name, spaces.Dict(observed))
            space = spaces.flatten_space(spaces.Dict(observed))
        self._describe(task.name, space, actions, observation_keys)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """End the threads and the simulators."""
        super().close(raise_if_closed=raise_if_closed)
        self._pool = None

    def _set_seed(self, seed: int | None) -> None:
        self._seed = seed
        self._pool = None

    def _built(self) -> Any:
        if self._pool is None:
            first = self._seed
            if first is None:
                first = int(np.random.default_rng().integers(_SEEDS))
            copies = range(self.batch_size[0])
            self._pool = self.task.pool([(first + index) % _SEEDS for index in copies])
        return self._pool

    def _reset(
        self, tensordict: TensorDictBase | None = None, *, seed: int | None = None
    ) -> TensorDictBase:
        if seed is not None:
            self._set_seed(seed)
        chosen = self._chosen(None if tensordict is None else tensordict.get("_reset", None))
        observation, _ = self._built().reset(chosen)
        rows = Rows(self.entries, self.batch_size[0])
        self._observe(rows, chosen, observation)
        # TorchRL keeps the entries of the copies that go on as they are.
        return rows.started()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        asked = tensordict.get("_step", None)
        chosen = self._chosen(asked)
        if not len(chosen):  # EnvPool would wait for a step of some copy
            return self._skip_tensordict(tensordict)
        actions = self.actions.to_environment(action_array(tensordict.get("action"))[chosen])
        observation, reward, ended, over, info = self._built().step(actions, chosen)
        elapsed = info["elapsed_step"]
        # The first step of an episode that nobody has asked for, or one after the last.
        if (elapsed == 0).any() or (elapsed > self.task.max_episode_steps).any():
            raise RuntimeError(
                f"a step of {self.task.name} was asked of a copy whose episode has ended, or has "
                "not begun; reset it first."
            )
        rows = Rows(self.entries, self.batch_size[0])
        self._observe(rows, chosen, observation)
        rows.rewards[chosen] = reward
        rows.terminated[chosen] = ended | over
        rows.truncated[chosen] = elapsed >= self.task.max_episode_steps
        return self._waiting(rows.stepped(tensordict), tensordict, asked)

    def _chosen(self, asked: Tensor | None) -> NDArray[np.int32]:
        """Numbers of the copies that a flag ``[num_envs, 1]`` chooses, or of all."""
        if asked is None:
            return np.arange(self.batch_size[0], dtype=np.int32)
        return np.flatnonzero(asked.reshape(-1).cpu().numpy()).astype(np.int32)

    def _observe(self, rows: Rows, chosen: NDArray[np.int32], observation: Any) -> None:
        """Write what the ``chosen`` copies observe into their rows."""
        count = len(chosen)
        # What float32 cannot hold becomes infinite, and is refused where the rollout is read.
        with np.errstate(over="ignore"):
            if self._parts is not None:
                parts = [part.of_batch(observation, count) for part in self._parts]
                observation = np.concatenate(parts, axis=-1)
            for entry, written in zip(self.entries, rows.observations, strict=True):
                written[chosen] = entry.of_batch(observation, count)


def envpool_source(
    env: EnvLike,
    max_episode_steps: int | None,
    arguments: Mapping[str, Any],
    wrappers: Sequence[str | Callable[[Any], Any]],
    observation_keys: Sequence[str] | None,
) -> Source:
    """Return what builds copies of a task of EnvPool.

    Args:
        env: EnvPool's id of a task, most of which are Gymnasium's, or ``"dmc:domain-task"``.
        max_episode_steps: replaces the task's own time limit.
        arguments: of the task, by EnvPool's names, and ``num_threads``.
        wrappers: transforms of TorchRL, or functions that take a TorchRL environment.
        observation_keys: entries of the observation to read.

    Raises:
        ArgumentError: EnvPool is not installed, does not have the task, or the task does not have
            one of the arguments.
    """
    known = _tasks()
    if not isinstance(env, str) or env not in known:
        raise ArgumentError("name", shown(env), _unknown(env, known))
    own = dict(arguments)
    _check_arguments(env, known[env], own)
    limit = max_episode_steps
    if limit is None:
        limit = int(_envpool().make_spec(known[env]).config.max_episode_steps)
    task = PoolTask(env, known[env], own, limit)
    make = partial(EnvPoolEnv, task, observation_keys=observation_keys)
    around = tuple(
        named_object(item, "wrappers") if isinstance(item, str) else item for item in wrappers
    )
    return Source(env, make, own, around, sized=True)


def _spaces(described: Any) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """The spaces of a pool or of its description."""
    with warnings.catch_warnings():
        # Some bounds are float64 where observations are float32.
        warnings.simplefilter("ignore")
        return described.observation_space, described.action_space


def _envpool() -> ModuleType:
    """EnvPool, which is imported when it is needed.

    Raises:
        ArgumentError: it is not installed.
    """
    try:
        return importlib.import_module("envpool")
    except ImportError as error:
        problem = f"needs EnvPool, which cannot be imported ({error}); "
        hint = "pip install 'diffpolicy[envpool]'."
        raise ArgumentError("source", "envpool", problem + hint) from error


def _tasks() -> dict[str, str]:
    """EnvPool's ids by the names of tasks: the ids themselves, and those of the control suite."""
    found = {env_id: env_id for env_id in _envpool().list_all_envs()}
    suite = importlib.import_module("envpool.mujoco.dmc.registration").dmc_mujoco_envs
    for domain, task, *_ in suite:
        env_id = f"{_joined(domain)}{_joined(task)}-v1"
        found[f"{SUITE}{domain}-{task}"] = env_id
    return found


def _joined(words: str) -> str:
    """``swingup_sparse`` as ``SwingupSparse``."""
    return "".join(word[:1].upper() + word[1:] for word in words.split("_"))


def _unknown(env: object, known: Mapping[str, str]) -> str:
    """Why something is no task of EnvPool."""
    if not isinstance(env, str):
        return "is a Python object, and EnvPool runs only its own tasks; give the id of one."
    if env in gym.registry:
        return "is a task of Gymnasium that EnvPool does not have; leave out source='envpool'."
    hint = close_matches(env, known) or "envpool.list_all_envs() lists them"
    return f"is not a task of EnvPool; {hint}."


def _check_arguments(env: str, env_id: str, arguments: Mapping[str, Any]) -> None:
    """Raise ArgumentError unless EnvPool's task takes all of them."""
    taken = [key for key in _envpool().make_spec(env_id).config._fields if key not in _OWN]
    for key in arguments:
        if key not in taken:
            hint = close_matches(key, taken) or f"choose from {', '.join(taken)}"
            problem = f"do not suit {env} of EnvPool: it does not take {key!r} here; {hint}."
            raise ArgumentError("env_kwargs", dict(arguments), problem)
    try:
        _envpool().make_spec(env_id, **arguments)
    except TypeError as error:
        problem = f"do not suit {env} of EnvPool: a value is of the wrong type."
        raise ArgumentError("env_kwargs", dict(arguments), problem) from error
