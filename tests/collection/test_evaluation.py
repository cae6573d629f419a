import re
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType

from collectors import (
    NonFiniteError,
    UnfinishedEpisodeError,
    derive_seed,
    episode_stats,
    evaluate,
    make_collector,
    make_env,
)

MakePolicy = Callable[..., TensorDictModule]


class TestEvaluate:
    def test_returns_are_those_of_the_plain_simulator(self, make_policy: MakePolicy) -> None:
        policy = make_policy(4, 1, 3.0)
        env = make_env("InvertedPendulum-v5", num_envs=3)
        returns, lengths = evaluate(policy, env, 3, seed=2)
        env.close()
        simulator = gym.make("InvertedPendulum-v5")
        for index in range(3):
            simulator.reset(seed=derive_seed(2, 0) + index)
            observation, _ = simulator.reset()
            total, steps, done = 0.0, 0, False
            while not done:
                with torch.no_grad():
                    action = policy.module.linear(torch.as_tensor(observation).float())
                observation, reward, terminated, truncated, _ = simulator.step(
                    action.clamp(-3, 3).numpy()
                )
                total, steps, done = total + float(reward), steps + 1, terminated or truncated
            assert returns[index] == pytest.approx(total, rel=1e-4)
            assert lengths[index] == steps
        assert len(set(lengths)) > 1

    def test_the_same_seed_gives_the_same_result_in_any_state(
        self, source: str, make_policy: MakePolicy
    ) -> None:
        policy = make_policy(3, 1, 2.0)
        env = make_env("Pendulum-v1", num_envs=2, max_episode_steps=20, source=source)
        run = partial(evaluate, policy, env, 2, exploration_type=ExplorationType.RANDOM)
        first = run(seed=0)
        env.rollout(7)
        torch.manual_seed(123)
        assert run(seed=0) == first
        assert run(seed=1) != first

    def test_each_copy_runs_one_episode_in_each_round(self, make_policy: MakePolicy) -> None:
        env = make_env("Counting-v0", num_envs=2, length=4)
        returns, lengths = evaluate(make_policy(2, 1), env, 5, seed=0)
        assert returns == [10.0] * 5
        assert lengths == [4] * 5

    def test_rounds_use_different_states(self, source: str, make_policy: MakePolicy) -> None:
        env = make_env("Pendulum-v1", num_envs=2, max_episode_steps=10, source=source)
        returns, _ = evaluate(make_policy(3, 1, 2.0), env, 6, seed=0)
        assert len(set(returns)) == 6

    def test_returns_are_unscaled(self, make_policy: MakePolicy) -> None:
        env = make_env("Counting-v0", length=4, reward_scale=0.01)
        assert evaluate(make_policy(2, 1), env, 1, seed=0) == ([10.0], [4])

    def test_exploration_type_reaches_the_policy(
        self, source: str, make_policy: MakePolicy
    ) -> None:
        env = make_env("Pendulum-v1", num_envs=2, max_episode_steps=10, source=source)
        run = partial(evaluate, make_policy(3, 1, 2.0), env, 2, seed=0)
        assert run() == run(exploration_type=ExplorationType.DETERMINISTIC)
        assert run() != run(exploration_type=ExplorationType.RANDOM)

    def test_modes_gradients_and_random_state_are_as_before(self) -> None:
        seen: list[tuple[bool, bool]] = []

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.frozen = nn.Dropout()
                self.linear = nn.Linear(2, 1)

            def forward(self, observation: torch.Tensor) -> torch.Tensor:
                seen.append((self.training or self.frozen.training, torch.is_grad_enabled()))
                torch.rand(1)
                return self.linear(observation).clamp(-1, 1)

        policy = TensorDictModule(Net(), in_keys=["observation"], out_keys=["action"])
        policy.train()
        policy.module.frozen.eval()
        torch.manual_seed(11)
        before = torch.get_rng_state()
        evaluate(policy, make_env("Counting-v0"), 1, seed=0)
        assert seen == [(False, False)] * 5
        assert policy.training
        assert policy.module.training
        assert not policy.module.frozen.training
        assert torch.equal(before, torch.get_rng_state())
        assert torch.is_grad_enabled()

    def test_the_mode_is_restored_after_an_error(self, make_policy: MakePolicy) -> None:
        policy = make_policy(2, 1).train()
        env = make_env("Counting-v0", num_envs=2, length=50)
        with pytest.raises(
            UnfinishedEpisodeError, match=r"2 episode\(s\) did not end within max_steps=10"
        ):
            evaluate(policy, env, 2, seed=0, max_steps=10)
        assert policy.training

    @pytest.mark.parametrize(("bad_step", "as_dict"), [(0, False), (2, True), (5, False)])
    def test_an_observation_that_is_not_finite_is_an_error(
        self, bad_step: int, as_dict: bool
    ) -> None:
        env = make_env("Counting-v0", num_envs=2, bad_step=bad_step, as_dict=as_dict)
        key: NestedKey = ("observation", "body", "speed") if as_dict else "observation"
        policy = TensorDictModule(lambda x: 0 * x[..., 1:], in_keys=[key], out_keys=["action"])
        words = f"{re.escape(repr(key))} is not finite in 2 of 2 environments at step {bad_step} "
        with pytest.raises(NonFiniteError, match=words):
            evaluate(policy, env, 2, seed=0)

    def test_what_comes_after_the_episode_that_counts_is_not_looked_at(
        self, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env = make_env("Counting-v0", num_envs=2, length=6)
        first, second = env.base_env.envs
        first.unwrapped.length = 2
        observe, resets = first.unwrapped._observe, []

        def broken_from_the_third_episode_on() -> Any:
            if first.unwrapped.steps == 0:
                resets.append(True)
            return observe() * (np.nan if len(resets) > 2 else 1.0)

        monkeypatch.setattr(first.unwrapped, "_observe", broken_from_the_third_episode_on)
        # the seeding of the environment resets it, too
        assert evaluate(make_policy(2, 1), env, 2, seed=0)[1] == [2, 6]
        assert len(resets) > 2
        assert second.unwrapped.steps == 0

    def test_bad_arguments(self, make_policy: MakePolicy) -> None:
        from torchrl.envs import GymEnv

        policy = make_policy(3, 1)
        with pytest.raises(ValueError, match="episodes must be an integer of at least 1, got 0"):
            evaluate(policy, make_env("Pendulum-v1"), 0, seed=0)
        with pytest.raises(ValueError, match=r"build it with collectors\.make_env"):
            evaluate(policy, GymEnv("Pendulum-v1"), 1, seed=0)


class TestEpisodeStats:
    def collect(self, frames: int) -> TensorDictBase:
        env_fn = partial(make_env, "Counting-v0", num_envs=2, length=3, reward_scale=0.1)
        collector = make_collector(env_fn, None, frames_per_batch=frames, seed=0)
        rollout = next(iter(collector))
        collector.shutdown()
        return rollout

    def test_sums_over_the_finished_episodes_only(self) -> None:
        stats = episode_stats(self.collect(2 * 8))
        # two environments, two finished episodes of 1 + 2 + 3 each, and an unfinished one
        assert (stats.count, stats.return_sum, stats.length_sum) == (4, 24.0, 12)

    def test_no_finished_episode(self) -> None:
        stats = episode_stats(self.collect(2 * 2))
        assert (stats.count, stats.return_sum, stats.length_sum) == (0, 0.0, 0)

    def test_a_rollout_without_statistics_is_an_error(self) -> None:
        rollout = TensorDict({"next": {"done": torch.zeros(2, 1, dtype=torch.bool)}}, [2])
        with pytest.raises(KeyError, match="episode_reward"):
            episode_stats(rollout)
