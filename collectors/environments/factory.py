"""From the name of an environment to copies of it as a TorchRL environment."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from torchrl.envs import (
    ActionScaling,
    Compose,
    EnvBase,
    RewardScaling,
    RewardSum,
    StepCounter,
    Transform,
    TransformedEnv,
)

from collectors.environments.chunks import ChunkedEnv
from collectors.environments.envpool_env import envpool_source
from collectors.environments.frames import FramesAsChannels
from collectors.environments.gymnasium_env import GymnasiumEnv
from collectors.environments.model_notices import known_notices_hidden
from collectors.environments.sources import EnvLike, Source, environment_source
from collectors.environments.spaces import EPISODE_REWARD_KEY, STEP_COUNT_KEY
from collectors.environments.torchrl_env import FramedEnv, torchrl_copies
from collectors.randomness import RandomStream
from collectors.seeding import derive_seed
from diffpolicy.errors import ArgumentError

#: Who runs the tasks that have a name.
Simulators = Literal["gymnasium", "envpool"]


def make_env(
    name: EnvLike,
    *,
    num_envs: int = 1,
    seed: int | None = None,
    reward_scale: float = 1.0,
    rescale_actions: bool = False,
    max_episode_steps: int | None = None,
    observation_keys: Sequence[str] | None = None,
    wrappers: Sequence[str | Callable[[Any], Any]] = (),
    frame_stack: int = 1,
    action_chunk: int = 1,
    gamma: float = 1.0,
    keep_batch: bool = False,
    source: Simulators = "gymnasium",
    **env_kwargs: Any,
) -> TransformedEnv:
    """Build ``num_envs`` copies of an environment, stepped together in this process.

    Copies of a Gymnasium environment are stepped one after the other
    (:class:`collectors.GymnasiumEnv`), and TorchRL resets the finished ones. Every row of a rollout
    is then a real transition, and ``("next", "observation")`` of a finished episode is the
    simulator's last observation.
    ``terminated`` (the task ended) and ``truncated`` (the time limit ended it) stay apart;
    ``done`` is either.

    ``"observation"`` is a float32 vector. Where the environment observes a dictionary or a tuple,
    it is a TensorDict with one vector for each entry, ``("observation", "position")``; discrete
    entries become one-hot vectors, matrices and single numbers vectors (as by
    ``gymnasium.spaces.flatten``), and images stay uint8 ``[H, W, C]``. Values stay raw:
    normalisation belongs to the networks (:class:`diffpolicy.networks.RunningNorm`), whose
    statistics are saved with the parameters and cannot be changed by an evaluation.

    Actions are float32 vectors whose bounds lie inside of those of the environment, which gets them
    as new arrays of its own type and shape, clipped to its own bounds. Rewards are float32.

    Simulators and their tensors are on the CPU, and the environment's ``device`` is ``None``:
    nothing is ever moved. A policy on a GPU is the business of :func:`collectors.make_collector`
    and :func:`collectors.evaluate`.

    Besides the usual entries an environment writes ``episode_reward`` (sum of the *unscaled*
    rewards since the reset) and ``step_count``, both ``[num_envs, 1]``; rows at ``("next",
    "done")`` hold the return and the length of the finished episode.

    Args:
        name: what to build; docs/environments.md shows each way.

            * a registered Gymnasium id, or ``"module:Id-v0"`` to import the module first;
            * ``"dmc:domain-task"`` for a task of the DeepMind Control Suite, for example
              ``"dmc:cheetah-run"`` (needs ``pip install 'diffpolicy[dmc]'``). All that a task of
              the suite observes becomes one vector;
            * ``"module:factory"``, or a factory: a function or class that returns a Gymnasium
              environment, or a TorchRL one. The module may be a file of the current folder;
            * one Gymnasium or TorchRL environment, where ``num_envs`` is the number of copies that
              it has. It stays yours: closing the result does not close it.

            A TorchRL environment keeps its own names of observations and its device. One without
            a batch is copied ``num_envs`` times; one with a batch has that size already, or comes
            from a factory with an argument ``num_envs``.
        num_envs: number of copies. The batch size is ``[num_envs]``, also for one copy.
        seed: seeds the simulators through :func:`derive_seed`; copy ``i`` gets
            ``derive_seed(seed) + i``. ``None`` leaves them unseeded. An environment that draws from
            the global generators of NumPy, Python or torch starts from this seed, too; later it
            draws from them as they are then. :func:`collectors.make_collector` and
            :func:`collectors.evaluate` give it generators of its own all the time.
        reward_scale: rewards are multiplied by this (after ``episode_reward`` is summed).
        rescale_actions: the environment then takes actions in ``[-1, 1]`` and maps them linearly
            to its own bounds.
        max_episode_steps: replaces the time limit of a registered environment; others get this one
            besides their own.
        observation_keys: the entries of a dictionary observation that are read, with dots between
            the keys of dictionaries in dictionaries (``"body.speed"``). By default all of them.
        wrappers: Gymnasium's wrappers, TorchRL's transforms, or their names ``"module:Wrapper"``,
            put around every environment, the first one innermost.
        frame_stack: how many of the last observations are observed at once, oldest first: longer
            vectors, and images of more channels. An episode begins with copies of its first one.
        action_chunk: how many actions a step takes, ``[action_chunk * A]``, which are executed one
            by one until an episode ends. ``reward`` is their discounted sum, and ``chunk_steps``
            says how many steps it took; episode statistics count steps of the environment.
        gamma: discount of a step of the environment inside of a chunk.
        keep_batch: whether a TorchRL environment that has a batch of a size of its own keeps it,
            whatever ``num_envs`` says.
        source: ``"gymnasium"``, or ``"envpool"`` for the tasks that EnvPool has (needs
            ``pip install 'diffpolicy[envpool]'``): ids of Gymnasium, ``"dmc:domain-task"``, and its
            own ids. Threads of C++ step all copies at once (:class:`collectors.EnvPoolEnv`). Seeds
            give other initial states there, and ``wrappers`` are TorchRL's.
        **env_kwargs: passed to the constructor of the environment, or to the factory.

    Returns:
        An environment with batch size ``[num_envs]``.

    Raises:
        ArgumentError: unknown id, task or factory, missing packages, discrete or unbounded
            actions, an entry of the observation of no fixed size, one environment where several
            are needed, or an argument out of range. Raised before anything is simulated.

    Example:
        >>> env = make_env("Pendulum-v1", num_envs=2, seed=0)
        >>> env.rollout(3)["next", "reward"].shape
        torch.Size([2, 3, 1])
    """
    _check_at_least_one("num_envs", num_envs)
    _check_at_least_one("frame_stack", frame_stack)
    _check_at_least_one("action_chunk", action_chunk)
    if max_episode_steps is not None:
        _check_at_least_one("max_episode_steps", max_episode_steps)
    if not (math.isfinite(reward_scale) and reward_scale > 0):
        raise ArgumentError(
            "reward_scale",
            reward_scale,
            "must be a positive finite number; 1.0 leaves rewards as they are.",
        )
    if source not in get_args(Simulators):
        raise ArgumentError("source", source, f"must be {' or '.join(get_args(Simulators))}.")
    if source == "envpool":
        found = envpool_source(name, max_episode_steps, env_kwargs, wrappers, observation_keys)
    else:
        found = environment_source(name, max_episode_steps, env_kwargs, wrappers)
    build = partial(_copies, found, num_envs, frame_stack, observation_keys, keep_batch)
    with known_notices_hidden():
        if seed is None:
            env = build()
        else:
            # Constructors and first episodes may draw from global generators.
            with RandomStream(derive_seed(seed)):
                env = build()
                env.set_seed(derive_seed(seed))
    if action_chunk > 1:
        env = ChunkedEnv(env, action_chunk, gamma)
    transforms: list[Transform] = []
    if rescale_actions and not _is_unit_box(env):
        transforms.append(ActionScaling())
    known = env.observation_spec.keys()
    transforms += [RewardSum()] if EPISODE_REWARD_KEY not in known else []
    transforms += [StepCounter()] if STEP_COUNT_KEY not in known else []
    if reward_scale != 1.0:
        transforms.append(RewardScaling(loc=0.0, scale=reward_scale))
    return MadeEnv(env, Compose(*transforms), auto_unwrap=False)


class MadeEnv(TransformedEnv):
    """What :func:`make_env` returns: an environment, its layers and transforms."""

    @property
    def chunk(self) -> int:
        """How many actions a step takes."""
        env = self.base_env
        return env.chunk if isinstance(env, ChunkedEnv) else 1

    @property
    def rescales(self) -> bool:
        """Whether actions in ``[-1, 1]`` are mapped to the bounds of the environment."""
        return any(isinstance(transform, ActionScaling) for transform in self.transform)

    @property
    def unchunked(self) -> EnvBase:
        """The environment that takes one action in each step, in its own units."""
        env = self.base_env
        return env.base_env if isinstance(env, ChunkedEnv) else env


def _copies(
    source: Source,
    num_envs: int,
    frames: int,
    observation_keys: Sequence[str] | None,
    keep_batch: bool,
) -> EnvBase:
    """The environment without transforms, with one batch dimension."""
    first = source.build(num_envs)
    if isinstance(first, EnvBase):
        env = torchrl_copies(source, first, num_envs, keep_batch=keep_batch)
        return env if frames == 1 else FramedEnv.of(env, frames, observation_keys)
    if frames > 1:
        history = partial(FramesAsChannels, frames)
        first, source = history(first), replace(source, wrappers=(*source.wrappers, history))
    if source.instance is not None and num_envs > 1:
        problem = (
            "must be 1 for one environment that has been built; give a factory instead of it, "
            f"for example lambda: {type(first.unwrapped).__name__}(...)."
        )
        raise ArgumentError("num_envs", num_envs, problem)
    return GymnasiumEnv(
        partial(source.build, 1),
        num_envs,
        name=source.name,
        observation_keys=observation_keys,
        first=first,
        owned=source.instance is None,
    )


def _check_at_least_one(argument: str, value: int) -> None:
    if value < 1:
        raise ArgumentError(argument, value, "must be an integer of at least 1.")


def _is_unit_box(env: EnvBase) -> bool:
    space = env.action_spec.space
    return bool((space.low == -1.0).all() and (space.high == 1.0).all())
