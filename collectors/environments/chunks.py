"""Chunks of actions: a policy plans several and the environment executes them in turn."""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Unbounded
from torchrl.envs import EnvBase

from collectors.environments.observed import CHUNK_STEPS_KEY
from collectors.environments.simulator_env import EnvLayer, simulator_env
from collectors.environments.spaces import EPISODE_REWARD_KEY, STEP_COUNT_KEY


class ChunkedEnv(EnvLayer):
    """An environment whose action is a sequence of actions ``[K * A]``, executed one by one.

    A step of it is up to ``K`` steps of the environment: fewer where an episode ends before. Its
    reward is their discounted sum ``sum_i gamma^i r_i``, and what follows is worth ``gamma^n`` of
    its value, where ``n`` is the number of steps, written as ``chunk_steps``. The statistics of
    episodes count undiscounted rewards and steps of the environment.

    Args:
        env: the environment, with one batch dimension.
        chunk: number of actions ``K``.
        gamma: discount of a step of the environment.
    """

    def __init__(self, env: EnvBase, chunk: int, gamma: float) -> None:
        super().__init__(device=env.device, batch_size=env.batch_size)
        self.base_env = env
        self.chunk = chunk
        self.gamma = gamma
        space = env.action_spec.space
        low, high = (bound.repeat(1, chunk) for bound in (space.low, space.high))
        self.action_spec = Bounded(low, high, dtype=env.action_spec.dtype, device=env.device)
        count = Unbounded((*env.batch_size, 1), dtype=torch.int64, device=env.device)
        observed = env.observation_spec.clone()
        known = set(observed.keys())
        self._adds = [key for key in (EPISODE_REWARD_KEY, STEP_COUNT_KEY) if key not in known]
        for key in (CHUNK_STEPS_KEY, *self._adds):
            counts = key != EPISODE_REWARD_KEY
            observed[key] = count.clone() if counts else env.reward_spec.clone()
        self.observation_spec = observed
        self.reward_spec = env.reward_spec.clone()
        self.done_spec = env.done_spec.clone()
        self.is_closed = False

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment."""
        super().close(raise_if_closed=raise_if_closed)
        self.base_env.close(raise_if_closed=raise_if_closed)

    def _set_seed(self, seed: int | None) -> None:
        self.base_env.set_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        reset = self.base_env.reset(tensordict, **kwargs)
        zero = torch.zeros((*self.batch_size, 1), dtype=torch.int64, device=self.device)
        for key in (CHUNK_STEPS_KEY, *self._adds):
            counts = key != EPISODE_REWARD_KEY
            reset.set(key, zero.clone() if counts else zero.to(self.reward_spec.dtype))
        return reset

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = tensordict.get("action").unflatten(-1, (self.chunk, -1))
        active = torch.ones((*self.batch_size, 1), dtype=torch.bool, device=self.device)
        chosen = tensordict.get("_step", None)
        if chosen is not None:
            active = chosen.reshape(active.shape).clone()
        state, waits = tensordict.exclude("_step", "next"), ~active
        result: TensorDictBase | None = None
        sums = _Sums(active)
        for index in range(self.chunk):
            state = state.copy().set("action", actions[..., index, :])
            stepped = self._advance(state, active)
            stays = active.reshape(self.batch_size)
            result = stepped if result is None else stepped.where(stays, result)
            sums.add(stepped.get("reward"), self.gamma**index, active)
            active = active & ~stepped.get("done")
            if not active.any():
                break
            state = state.update(result.exclude("reward"))
        assert result is not None
        if waits.any():
            kept = self._skip_tensordict(tensordict).select(*result.keys(True, True), strict=False)
            result = result.where(~waits.reshape(self.batch_size), kept)
        return self._written(result, tensordict, sums)

    def _advance(self, state: TensorDictBase, active: Tensor) -> TensorDictBase:
        """One step of the environment; what it does to the copies that wait is not used."""
        own = simulator_env(self.base_env)
        if own is not None:
            # Its copies must not go on after their end.
            state = state.set("_step", active.reshape(self.batch_size))
        if own is self.base_env:
            return own._step(state)
        return self.base_env.step(state)["next"]

    def _written(
        self, result: TensorDictBase, before: TensorDictBase, sums: "_Sums"
    ) -> TensorDictBase:
        result.set("reward", sums.discounted)
        result.set(CHUNK_STEPS_KEY, sums.steps)
        added: Mapping[str, Tensor] = {EPISODE_REWARD_KEY: sums.rewards, STEP_COUNT_KEY: sums.steps}
        for key in self._adds:
            result.set(key, before.get(key) + added[key])
        return result


class _Sums:
    """What the steps of a chunk add up to."""

    def __init__(self, active: Tensor) -> None:
        self.steps = torch.zeros_like(active, dtype=torch.int64)
        self.rewards = torch.zeros_like(active, dtype=torch.float32)
        self.discounted = torch.zeros_like(self.rewards)

    def add(self, reward: Tensor, discount: float, active: Tensor) -> None:
        """One more step of the copies that are ``active``."""
        counted = torch.where(active, reward, 0.0)
        self.steps = self.steps + active
        self.rewards = self.rewards + counted
        self.discounted = self.discounted + discount * counted
