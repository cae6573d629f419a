"""What the environments that run simulators themselves have in common."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from collectors.environments.spaces import (
    EPISODE_REWARD_KEY,
    STEP_COUNT_KEY,
    Actions,
    Entry,
    observation_entries,
)


class SimulatorEnv(EnvBase):
    """Copies of one environment with Gymnasium's spaces, on the CPU.

    Every row is a real transition: a finished copy is reset when TorchRL asks for it, and
    ``("next", "observation")`` of its last row is the simulator's last observation. Copies that
    ``_step`` or ``_reset`` leave out stay where they are. Simulators and rows share no memory.

    Observations have one place of their own, ``"observation"``: a tensor ``[num_envs, F]``, or a
    TensorDict with the entries of a dictionary. So no name of an entry can be that of something
    else. See :func:`collectors.observation_entries` for what becomes of each space.

    ``"episode_reward"`` and ``"step_count"``, both ``[num_envs, 1]``, are sums since the reset of a
    copy, as those of TorchRL's ``RewardSum`` and ``StepCounter``, without two transforms that go
    through the rows of every step once more.

    Args:
        num_envs: number of copies; the batch size is ``[num_envs]``.

    Attributes:
        entries: what is read of an observation, which may be a history.
        frames: how many observations it is a history of; 1 without one.
        frame_entries: what is read of each of these.
        actions: how actions get to the copies.
    """

    entries: list[Entry]
    frames: int
    frame_entries: list[Entry]
    actions: Actions

    def __init__(self, num_envs: int) -> None:
        # No device: with one TorchRL would move every step to where it is already, which costs
        # 15 % of the frame rate.
        super().__init__(device=None, batch_size=[num_envs])

    def _describe(
        self,
        name: str,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        observation_keys: Sequence[str] | None,
    ) -> None:
        """Set what is observed and how it acts; raises ArgumentError for unsupported spaces."""
        self.entries = observation_entries(name, observation_space, observation_keys)
        self.frames, self.frame_entries = 1, self.entries
        self.actions = Actions.of(name, action_space)
        num_envs = self.batch_size[0]
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
        # TorchRL takes environments for closed that are not wrapped in its own way.
        self.is_closed = False

    def _waiting(
        self, stepped: TensorDictBase, before: TensorDictBase, chosen: Tensor | None
    ) -> TensorDictBase:
        """Rows of a step in which the copies that were not ``chosen`` stay where they are."""
        if chosen is None:
            return stepped
        return stepped.where(chosen.reshape(self.batch_size), self._skip_tensordict(before))


class EnvLayer(EnvBase):
    """An environment around another one, ``base_env``, which holds all of its state."""

    base_env: EnvBase


def simulator_env(env: EnvBase) -> SimulatorEnv | None:
    """The simulators inside of all transforms; None for a TorchRL environment of another kind."""
    while isinstance(env, (TransformedEnv, EnvLayer)):
        env = env.base_env
    return env if isinstance(env, SimulatorEnv) else None


class Rows:
    """One row for each copy, in fresh memory.

    Args:
        entries: what is read of an observation.
        num_envs: number of copies.

    Attributes:
        observations: one array ``[num_envs, *shape]`` for each entry.
        rewards: ``[num_envs]``, float32.
        terminated: ``[num_envs]``, bool.
        truncated: ``[num_envs]``, bool.
    """

    def __init__(self, entries: Sequence[Entry], num_envs: int) -> None:
        self._entries = entries
        self.observations: list[NDArray[Any]] = [
            np.zeros((num_envs, *entry.shape), entry.dtype) for entry in entries
        ]
        self.rewards = np.zeros(num_envs, np.float32)
        self.terminated = np.zeros(num_envs, np.bool_)
        self.truncated = np.zeros(num_envs, np.bool_)

    def started(self) -> TensorDictBase:
        """All rows at the start of an episode."""
        zeros = torch.zeros(len(self.rewards), 1, dtype=torch.int64)
        return self._tensordict({EPISODE_REWARD_KEY: zeros.float(), STEP_COUNT_KEY: zeros})

    def stepped(self, before: TensorDictBase) -> TensorDictBase:
        """All rows after a step from ``before``."""
        reward, steps = _column(self.rewards), before.get(STEP_COUNT_KEY, None)
        return self._tensordict(
            {
                "reward": reward,
                EPISODE_REWARD_KEY: before.get(EPISODE_REWARD_KEY, 0.0) + reward,
                STEP_COUNT_KEY: torch.ones_like(reward).long() if steps is None else steps + 1,
            }
        )

    def _tensordict(self, out: dict[NestedKey, Tensor]) -> TensorDictBase:
        for entry, rows in zip(self._entries, self.observations, strict=True):
            out[entry.key] = torch.from_numpy(rows)
        terminated, truncated = map(_column, (self.terminated, self.truncated))
        out |= {
            "done": terminated | truncated,
            "terminated": terminated,
            "truncated": truncated,
        }
        return TensorDict(out, [len(self.rewards)])


def _column(values: NDArray[Any]) -> Tensor:
    """``[num_envs, 1]``, in the memory of ``values`` ``[num_envs]``."""
    return torch.from_numpy(values[:, None])


def action_array(action: Tensor) -> NDArray[Any]:
    """Actions ``[num_envs, A]`` for simulators, float32 or float64."""
    exact = action.dtype in (torch.float32, torch.float64)
    array: NDArray[Any] = (action if exact else action.float()).detach().cpu().numpy()
    return array
