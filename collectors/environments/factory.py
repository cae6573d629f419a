"""Batched Gymnasium environments as TorchRL environments."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from torchrl.envs import (
    ActionScaling,
    Compose,
    DoubleToFloat,
    GymWrapper,
    RewardScaling,
    RewardSum,
    StepCounter,
    Transform,
    TransformedEnv,
)

from collectors.environments.sources import make_arguments

EPISODE_REWARD_KEY = "episode_reward"
STEP_COUNT_KEY = "step_count"


def derive_seed(seed: int, *path: int) -> int:
    """Spread ``seed`` (and a path such as rank or worker index) over the 31-bit integers.

    Gymnasium gives the i-th environment of a batch the seed ``seed + i``. Runs with neighbouring
    seeds, or ranks seeded ``seed + rank``, would therefore share almost all their environments.
    Hashing the seed first (``numpy.random.SeedSequence``) keeps the batches apart.

    Args:
        seed: any non-negative integer.
        *path: further non-negative integers that name the stream, for example ``rank``.

    Returns:
        An integer in ``[0, 2**31)``, the same for the same arguments on every machine.

    Raises:
        ValueError: a negative number was given.

    Example:
        >>> derive_seed(0) == derive_seed(0), derive_seed(0) == derive_seed(0, 1)
        (True, False)
    """
    for number in (seed, *path):
        if number < 0:
            raise ValueError(f"seed must be a non-negative integer, got {number}; try {-number}.")
    # The length is part of the entropy: SeedSequence itself ignores trailing zeros.
    words = np.random.SeedSequence([len(path), seed, *path]).generate_state(1)
    return int(words[0] >> 1)


def make_env(
    name: str,
    *,
    num_envs: int = 1,
    seed: int | None = None,
    reward_scale: float = 1.0,
    rescale_actions: bool = False,
    max_episode_steps: int | None = None,
    **gym_kwargs: Any,
) -> TransformedEnv:
    """Build ``num_envs`` copies of a Gymnasium environment, stepped together in this process.

    The copies run in one Gymnasium ``SyncVectorEnv`` with autoreset disabled, so TorchRL itself
    resets the finished ones. Every row of a rollout is then a real transition, and
    ``("next", "observation")`` of a finished episode is the simulator's last observation.
    ``terminated`` (the task ended) and ``truncated`` (the time limit ended it) stay apart;
    ``done`` is either.

    Observations and rewards are float32. Observations stay raw: normalisation belongs to the
    networks (:class:`diffpolicy.networks.RunningNorm`), whose statistics are saved with the
    parameters and cannot be changed by an evaluation.

    Simulators and their tensors are on the CPU, and the environment's ``device`` is ``None``:
    nothing is ever moved. A policy on a GPU is the business of :func:`collectors.make_collector`
    and :func:`collectors.evaluate`.

    Besides the usual entries an environment writes ``episode_reward`` (sum of the *unscaled*
    rewards since the reset) and ``step_count``, both ``[num_envs, 1]``; rows at ``("next",
    "done")`` hold the return and the length of the finished episode.

    Args:
        name: a registered Gymnasium id, ``"module:Id-v0"`` to import the module first, or
            ``"dmc:domain-task"`` for a task of the DeepMind Control Suite, for example
            ``"dmc:cheetah-run"`` (needs ``pip install 'diffpolicy[dmc]'``). All that a task of the
            suite observes becomes one vector.
        num_envs: number of copies. The batch size is ``[num_envs]``, also for one copy.
        seed: seeds the simulators through :func:`derive_seed`; copy ``i`` gets
            ``derive_seed(seed) + i``. ``None`` leaves them unseeded.
        reward_scale: rewards are multiplied by this (after ``episode_reward`` is summed).
        rescale_actions: the environment then takes actions in ``[-1, 1]`` and maps them linearly
            to its own bounds.
        max_episode_steps: replaces the environment's own time limit.
        **gym_kwargs: passed to the environment's constructor.

    Returns:
        An environment with batch size ``[num_envs]``.

    Raises:
        ValueError: unknown id or task, missing packages, discrete or unbounded actions, or an
            argument out of range. Raised before anything is simulated.

    Example:
        >>> env = make_env("Pendulum-v1", num_envs=2, seed=0)
        >>> env.rollout(3)["next", "reward"].shape
        torch.Size([2, 3, 1])
    """
    _check_at_least_one("num_envs", num_envs)
    if max_episode_steps is not None:
        _check_at_least_one("max_episode_steps", max_episode_steps)
    if not (math.isfinite(reward_scale) and reward_scale > 0):
        raise ValueError(
            f"reward_scale must be a positive finite number, got {reward_scale}; 1.0 leaves "
            "rewards as they are."
        )
    base_seed = None if seed is None else derive_seed(seed)
    vector_env = gym.make_vec(
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        **make_arguments(name, max_episode_steps, gym_kwargs),
    )
    try:
        bounds = _checked_action_bounds(name, vector_env.single_action_space)
    except ValueError:
        vector_env.close()
        raise
    transforms: list[Transform] = [DoubleToFloat()]
    if rescale_actions and not _is_unit_box(*bounds):
        transforms.append(ActionScaling())
    transforms += [RewardSum(), StepCounter()]
    if reward_scale != 1.0:
        transforms.append(RewardScaling(loc=0.0, scale=reward_scale))
    # No device: TorchRL would call tensordict.to("cpu") at every step, which costs 15 % of the
    # frame rate. On a GPU its GymWrapper cannot reset single environments of a batch.
    env = TransformedEnv(GymWrapper(vector_env, device=None), Compose(*transforms))
    if base_seed is not None:
        env.set_seed(base_seed)
    return env


def _check_at_least_one(argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{argument} must be an integer of at least 1, got {value}.")


def _checked_action_bounds(name: str, space: gym.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the action bounds, or raise ValueError when the action is not a bounded vector."""
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"name={name!r} has the action space {space}, but only continuous actions "
            "(gymnasium.spaces.Box of floats) are supported; choose a continuous variant, for "
            "example MountainCarContinuous-v0 or Pendulum-v1."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"name={name!r} has the unbounded action space {space}, but finite bounds are needed; "
            "register the environment with a finite Box, for example Box(-1.0, 1.0, "
            f"{space.shape})."
        )
    return space.low, space.high


def _is_unit_box(low: np.ndarray, high: np.ndarray) -> bool:
    return bool((low == -1.0).all() and (high == 1.0).all())
