"""Demonstrations by trained policies, in the layout of TorchRL's offline data sets."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase, lazy_stack

from collectors import RandomStream, derive_seed
from diffpolicy.errors import ArgumentError
from diffpolicy.policy.observations import read_observation
from diffpolicy.policy.policy import Policy


def record_episodes(
    policy: Policy,
    env: gym.Env[Any, Any],
    *,
    seed: int,
    deterministic: bool = True,
    noise: float = 0.0,
) -> Iterator[TensorDictBase]:
    """Endless episodes of a policy, each with its transitions ``[T]``.

    Entries are the observation, as the environments of :func:`collectors.make_env` write it,
    ``action``, ``done``, ``terminated`` and ``truncated``, and ``next`` with the observation after
    the step, ``reward`` and the same three.

    Args:
        policy: acts.
        env: where.
        seed: of initial states and noise.
        deterministic: act without the noise of the policy.
        noise: standard deviation of what is added to actions, as a share of half the range of each;
            the sum is clipped to the bounds.
    """
    generator = np.random.default_rng(derive_seed(seed, 1))
    policy.seed(seed)
    number = 0
    while True:
        # Some environments draw from the global generators.
        with RandomStream(derive_seed(seed, 2, number)):
            yield _episode(policy, env, seed + number, deterministic, noise, generator)
        number += 1


def _episode(
    policy: Policy,
    env: gym.Env[Any, Any],
    seed: int,
    deterministic: bool,
    noise: float,
    generator: np.random.Generator,
) -> TensorDictBase:
    observation, _ = env.reset(seed=seed)
    policy.reset()
    rows: list[TensorDictBase] = []
    current = _observed(policy, observation)
    ended = False
    while not ended:
        action = policy.act(observation, deterministic=deterministic)
        action = _disturbed(policy, action, noise * generator.standard_normal(action.shape))
        observation, reward, terminated, truncated, _ = env.step(action)
        ended = bool(terminated or truncated)
        following = _observed(policy, observation)
        ends = {"done": ended, "terminated": bool(terminated), "truncated": bool(truncated)}
        for name, value in {"reward": float(reward), **ends}.items():
            following[name] = torch.tensor([value])
        row = current.clone()
        row["action"] = torch.from_numpy(action.reshape(-1))
        for name in ends:
            row[name] = torch.zeros(1, dtype=torch.bool)
        row["next"] = following
        rows.append(row)
        current = _observed(policy, observation)
    return lazy_stack(rows).contiguous()


def _observed(policy: Policy, observation: Any) -> TensorDictBase:
    """What the policy is given, as one row."""
    rows = read_observation(policy.entries, observation).rows
    data = TensorDict()
    for entry, row in zip(policy.entries, rows, strict=True):
        data.set(entry.key, torch.from_numpy(np.array(row)))
    return data


def _disturbed(policy: Policy, action: NDArray[Any], noise: NDArray[Any]) -> NDArray[Any]:
    """An action with noise in [-1, 1] units, inside of the bounds."""
    low, high = policy.actions.space.low, policy.actions.space.high
    return (action + 0.5 * (high - low) * noise).clip(low, high).astype(action.dtype)


def save_demonstrations(data: TensorDictBase, folder: str | Path) -> Path:
    """Write transitions ``[R]`` as a memory-mapped TensorDict, whole or not at all.

    Args:
        data: the transitions.
        folder: a new one.

    Raises:
        ArgumentError: it exists, or cannot be written to.
    """
    folder = Path(folder)
    check_new(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        data.memmap(temporary)
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ArgumentError("output", str(folder), f"cannot be written to: {error}.") from error
    return folder


def check_new(folder: Path) -> None:
    """Raise ArgumentError if ``folder`` exists."""
    if folder.exists():
        raise ArgumentError("output", str(folder), "exists; give a new folder.")
