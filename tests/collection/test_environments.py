import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import check_env_specs

import collectors
from collectors import derive_seed, make_collector, make_env

_DRAWING = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
MakePolicy = Callable[..., TensorDictModule]


def collect(
    env_fn: Callable[..., object], policy: object, frames: int, seed: int = 0
) -> TensorDict:
    collector = make_collector(env_fn, policy, frames_per_batch=frames, seed=seed)
    rollout = next(iter(collector))
    collector.shutdown()
    return rollout


def replay(rollout: TensorDictBase, name: str, first_seed: int, **kwargs: object) -> dict[str, int]:
    """Repeat the recorded actions in plain Gymnasium environments and compare every row."""
    ends = {"terminated": 0, "truncated": 0}
    for index in range(rollout.shape[0]):
        env = gym.make(name, **kwargs)
        env.reset(seed=first_seed + index)
        observation, _ = env.reset()  # the seeded reset is TorchRL's, the collector then resets
        steps, total = 0, 0.0
        for time in range(rollout.shape[1]):
            row = rollout[index, time]
            assert row["step_count"].item() == steps
            np.testing.assert_allclose(row["observation"], np.float32(observation), rtol=1e-6)
            observation, reward, terminated, truncated, _ = env.step(row["action"].numpy())
            steps, total = steps + 1, total + float(reward)
            following = row["next"]
            np.testing.assert_allclose(following["observation"], np.float32(observation), rtol=1e-6)
            assert following["reward"].item() == pytest.approx(float(reward), rel=1e-5, abs=1e-6)
            assert following["terminated"].item() == terminated
            assert following["truncated"].item() == truncated
            assert following["done"].item() == (terminated or truncated)
            assert following["step_count"].item() == steps
            assert following["episode_reward"].item() == pytest.approx(total, rel=1e-4)
            if terminated or truncated:
                ends["terminated"] += int(terminated)
                ends["truncated"] += int(truncated)
                observation, _ = env.reset()
                steps, total = 0, 0.0
        env.close()
    return ends


class TestEveryRowIsARealTransition:
    def test_terminations(self, make_policy: MakePolicy) -> None:
        env_fn = partial(make_env, "InvertedPendulum-v5", num_envs=3)
        rollout = collect(env_fn, make_policy(4, 1, 3.0), 3 * 60, seed=5)
        ends = replay(rollout, "InvertedPendulum-v5", derive_seed(5))
        assert ends["terminated"] >= 6
        assert ends["truncated"] == 0

    def test_truncations(self, make_policy: MakePolicy) -> None:
        env_fn = partial(make_env, "Pendulum-v1", num_envs=2, max_episode_steps=7)
        rollout = collect(env_fn, make_policy(3, 1, 2.0), 2 * 25, seed=6)
        ends = replay(rollout, "Pendulum-v1", derive_seed(6), max_episode_steps=7)
        assert ends == {"terminated": 0, "truncated": 6}

    def test_the_rows_around_an_episode_end(self) -> None:
        rollout = collect(partial(make_env, "Counting-v0", num_envs=2, length=3), None, 2 * 8)
        for index in range(2):
            row = rollout[index]
            assert row["observation"][:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
            assert row["next", "observation"][:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
            assert row["next", "terminated"].flatten().nonzero().flatten().tolist() == [2, 5]
            assert not row["next", "truncated"].any()

    def test_only_the_finished_environments_are_reset(self, make_policy: MakePolicy) -> None:
        env = make_env("InvertedPendulum-v5", num_envs=4, seed=1)
        rollout = env.rollout(60, make_policy(4, 1, 3.0), break_when_any_done=False)
        done = rollout["next", "done"][:, :-1, 0]
        assert 0 < done.sum() < done.numel()
        continues = (rollout["observation"][:, 1:] == rollout["next", "observation"][:, :-1]).all(
            -1
        )
        assert torch.equal(continues, ~done)
        env.close()

    def test_a_rollout_continues_where_the_last_one_stopped(self) -> None:
        env_fn = partial(make_env, "Counting-v0", num_envs=1, length=100)
        collector = make_collector(env_fn, None, frames_per_batch=4, seed=0)
        iterator = iter(collector)
        first, second = next(iterator), next(iterator)
        assert first["observation"][0, :, 0].tolist() == [0, 1, 2, 3]
        assert second["observation"][0, :, 0].tolist() == [4, 5, 6, 7]
        collector.shutdown()


class TestEntries:
    @pytest.mark.parametrize("num_envs", [1, 3])
    def test_specs_match_the_data_and_everything_is_batched(self, num_envs: int) -> None:
        env = make_env("HalfCheetah-v5", num_envs=num_envs, seed=0, reward_scale=0.1)
        assert env.batch_size == (num_envs,)
        check_env_specs(env, seed=None)
        rollout = env.rollout(2)
        assert rollout["observation"].dtype == torch.float32
        assert rollout["next", "reward"].shape == (num_envs, 2, 1)
        env.close()

    def test_reward_scaling_leaves_episode_rewards_in_raw_units(self) -> None:
        rollout = make_env("Counting-v0", length=3, reward_scale=0.5).rollout(3)
        assert rollout["next", "reward"].flatten().tolist() == [0.5, 1.0, 1.5]
        assert rollout["next", "episode_reward"].flatten().tolist() == [1.0, 3.0, 6.0]
        assert rollout["next", "step_count"].flatten().tolist() == [1, 2, 3]

    def test_rescaled_actions_reach_the_simulator_in_its_own_units(self) -> None:
        env = make_env("Counting-v0", low=-2.0, high=6.0, rescale_actions=True)
        assert env.action_spec.space.low.tolist() == [[-1.0]]
        assert env.action_spec.space.high.tolist() == [[1.0]]

        def act(tensordict: TensorDictBase) -> TensorDictBase:
            return tensordict.set("action", torch.tensor([[0.5]]))

        rollout = env.rollout(2, act)
        assert rollout["action"].flatten().tolist() == [0.5, 0.5]
        assert rollout["next", "observation"][0, :, 1].tolist() == [4.0, 4.0]

    def test_actions_keep_their_bounds_without_rescaling(self) -> None:
        env = make_env("Counting-v0", low=-2.0, high=6.0)
        assert env.action_spec.space.low.tolist() == [[-2.0]]
        assert env.action_spec.space.high.tolist() == [[6.0]]

    def test_dict_observations_become_nested_float32_entries(self) -> None:
        env = make_env("Counting-v0", num_envs=2, as_dict=True, length=3)
        check_env_specs(env, seed=None)
        rollout = env.rollout(4, break_when_any_done=False)
        assert rollout["observation", "body", "speed"].dtype == torch.float32
        assert rollout["observation", "body", "speed"][1, :, 0].tolist() == [0, 1, 2, 0]
        assert rollout["next", "observation", "target"][1, :, 0].tolist() == [11, 12, 13, 11]

    def test_the_time_limit_replaces_the_registered_one(self) -> None:
        env = make_env("Pendulum-v1", max_episode_steps=3)
        rollout = env.rollout(10)
        assert rollout["next", "truncated"].flatten().tolist() == [False, False, True]
        assert not rollout["next", "terminated"].any()

    def test_gymnasium_arguments_reach_the_environment(self) -> None:
        env = make_env("HalfCheetah-v5", exclude_current_positions_from_observation=False)
        assert env.observation_spec["observation"].shape == (1, 18)


class TestSeeds:
    def reset(self, seed: int | None, num_envs: int = 4) -> torch.Tensor:
        env = make_env("HalfCheetah-v5", num_envs=num_envs, seed=seed)
        observation = env.reset()["observation"]
        env.close()
        return observation

    def test_the_same_seed_gives_the_same_states(self) -> None:
        assert torch.equal(self.reset(3), self.reset(3))

    def test_neighbouring_seeds_share_no_environment(self) -> None:
        both = torch.cat([self.reset(0), self.reset(1)])
        assert len(both.unique(dim=0)) == 8

    def test_seeding_leaves_the_global_random_state_alone(self) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        self.reset(0)
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002

    def test_derived_seeds_are_distinct_and_stable(self) -> None:
        paths = [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]
        seeds = {derive_seed(seed, *path) for seed in range(50) for path in paths}
        assert len(seeds) == 50 * len(paths)
        assert all(0 <= seed < 2**31 for seed in seeds)
        assert derive_seed(0) == 1484405855  # pinned: results must not change between versions

    def test_negative_seeds_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"seed=-1 must be a non-negative integer; try 1"):
            make_env("Pendulum-v1", seed=-1)


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "suggestion"),
        [
            ("HalfCheeta-v5", "HalfCheetah-v5"),
            ("halfcheetah-v5", "HalfCheetah-v5"),
            ("Hopper", "Hopper-v"),
            ("Pendulum-v9", "Pendulum-v1"),
            ("no such thing at all", "pprint_registry"),
        ],
    )
    def test_unknown_ids(self, name: str, suggestion: str) -> None:
        with pytest.raises(ValueError, match=f"name='{name}' is not a registered.*{suggestion}"):
            make_env(name)

    def test_unknown_module(self) -> None:
        with pytest.raises(ValueError, match="which cannot be imported"):
            make_env("no_such_module:Thing-v0")

    def test_discrete_actions(self) -> None:
        with pytest.raises(ValueError, match=r"'CartPole-v1' has the action space Discrete\(2\)"):
            make_env("CartPole-v1")

    def test_integer_actions(self) -> None:
        with pytest.raises(ValueError, match=r"int64.*only continuous actions"):
            make_env("Counting-v0", integer_actions=True)

    @pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (-1.0, np.inf), (-np.inf, 1.0)])
    def test_unbounded_actions(self, bounds: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match=r"unbounded action space .* finite bounds are needed"):
            make_env("Counting-v0", low=bounds[0], high=bounds[1])

    @pytest.mark.parametrize("argument", ["num_envs", "max_episode_steps"])
    @pytest.mark.parametrize("value", [0, -2])
    def test_counts_below_one(self, argument: str, value: int) -> None:
        with pytest.raises(ValueError, match=f"{argument}={value} must be .* at least 1"):
            make_env("Pendulum-v1", **{argument: value})

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
    def test_reward_scales_that_destroy_the_reward(self, scale: float) -> None:
        with pytest.raises(ValueError, match=f"reward_scale={scale} must be a positive"):
            make_env("Pendulum-v1", reward_scale=scale)


def test_nothing_is_printed_and_nothing_warns() -> None:
    script = (
        "import logging, os\n"
        "from functools import partial\n"
        "from collectors import make_collector, make_env\n"
        "env_fn = partial(make_env, 'HalfCheetah-v5', num_envs=2)\n"
        "collector = make_collector(env_fn, None, frames_per_batch=4, seed=0)\n"
        "assert next(iter(collector)).shape == (2, 2)\n"
        "collector.shutdown()\n"
        "before = dict(os.environ), list(logging.getLogger().handlers)\n"
        "make_env('dmc:walker-run', num_envs=2).rollout(4)\n"
        "assert before == (dict(os.environ), list(logging.getLogger().handlers))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(collectors.__file__).parents[1],
        # no display and no choice of a renderer: those are the user's, if there are any
        env={key: value for key, value in os.environ.items() if key not in _DRAWING},
    )
    assert (result.stdout, result.stderr) == ("", "")


def test_warnings_are_not_filtered_by_the_library() -> None:
    before = list(warnings.filters)
    make_env("Pendulum-v1").close()
    assert list(warnings.filters) == before
