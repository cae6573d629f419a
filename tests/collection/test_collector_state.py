"""A restored collector continues as the saved one does, to the last bit."""

import io
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import GymEnv, SerialEnv

from collectors import (
    OffPolicyStream,
    OnPolicyStream,
    UnsupportedStateError,
    collector_state,
    load_collector_state,
    load_replay_state,
    make_collector,
    make_env,
    make_replay_buffer,
    replay_state,
)

MakePolicy = Callable[..., TensorDictModule]
Build = Callable[..., BaseCollector]


def through_a_file(state: Any) -> Any:
    """What is left of a state after it has been written and read as data only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(first: TensorDictBase, second: TensorDictBase) -> None:
    assert first.shape == second.shape
    keys = sorted(first.keys(True, True), key=str)
    assert keys == sorted(second.keys(True, True), key=str)
    for key in keys:
        assert first[key].dtype == second[key].dtype, key
        assert torch.equal(first[key], second[key]), key


@pytest.fixture
def build(make_policy: MakePolicy) -> Build:
    """Build a collector with a noisy policy."""

    def build(name: str, seed: int, steps: int = 6, **options: Any) -> BaseCollector:
        env = make_env(name, num_envs=2, **options)
        sizes = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
        policy = make_policy(*sizes, float(env.action_spec.space.high.min()))
        return make_collector(lambda: env, policy, frames_per_batch=2 * steps, seed=seed)

    return build


CASES = {
    "HalfCheetah-v5": {"max_episode_steps": 16},
    "Hopper-v5": {"steps": 25},
    "Ant-v5": {"max_episode_steps": 16},
    "Pendulum-v1": {"max_episode_steps": 16},
    "dmc:cheetah-run": {"max_episode_steps": 16},
    "dmc:pendulum-swingup": {"max_episode_steps": 16},
    "dmc:reacher-easy": {"max_episode_steps": 16},
    "TurningDoubleWell-v0": {"max_episode_steps": 16},
    "TurningMultiWell-v0": {"max_episode_steps": 16},
    "MultiGoal-v0": {"max_episode_steps": 16},
    "MountainCarContinuous-v0": {"max_episode_steps": 16},
}


@pytest.mark.parametrize(
    ("name", "used"), [*((name, False) for name in CASES), ("Hopper-v5", True)]
)
def test_it_continues_to_the_last_bit(name: str, used: bool, build: Build) -> None:
    first, second = build(name, 0, **CASES[name]), build(name, 7, **CASES[name])
    rollouts = iter(first)
    before = torch.stack([next(rollouts) for _ in range(4)])
    state = through_a_file(collector_state(first))
    torch.manual_seed(5)
    expected = [next(rollouts) for _ in range(5)]
    torch.manual_seed(6)  # the noise is the collector's own
    others = iter(second)
    if used:
        next(others)
    load_collector_state(second, state)
    for rollout in expected:
        assert_same(next(others), rollout)
    assert before["next", "done"].any()
    assert torch.stack(expected)["next", "done"].any()
    assert not expected[0]["collector", "traj_ids"].eq(0).any()
    first.shutdown()
    second.shutdown()


def test_random_frames_and_counters_continue() -> None:
    env_fn = partial(make_env, "Pendulum-v1", num_envs=2)

    def build(seed: int) -> BaseCollector:
        return make_collector(
            env_fn, None, frames_per_batch=4, seed=seed, random_frames=8, total_frames=16
        )

    first, second = build(0), build(1)
    rollouts = iter(first)
    next(rollouts)
    load_collector_state(second, through_a_file(collector_state(first)))
    expected, restored = list(rollouts), list(iter(second))
    assert len(expected) == len(restored) == 3
    for ours, theirs in zip(expected, restored, strict=True):
        assert_same(ours, theirs)


class Leaning(gym.Env[Any, Any]):
    """A user's environment: drifts by a noise of its own, in episodes of random lengths."""

    def __init__(self, sticky: object = None) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.sticky = sticky
        self.path: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 9))
        self.position = self.np_random.normal(size=2)
        self.path = [self.position]
        return self.position, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        self.position += 0.1 * action + 0.1 * self.np_random.normal(size=2)  # in place
        self.path.append(self.position[:1])
        return self.position, float(sum(p[0] for p in self.path)), self.left == 0, False, {}


@pytest.fixture
def leaning() -> Iterator[None]:
    gym.register("Leaning-v0", entry_point=Leaning, disable_env_checker=True)
    yield
    del gym.registry["Leaning-v0"]


@pytest.mark.usefixtures("leaning")
def test_an_environment_of_a_user(build: Build) -> None:
    first, second = build("Leaning-v0", 0), build("Leaning-v0", 1)
    rollouts, others = iter(first), iter(second)
    for _ in range(4):
        next(rollouts)
        load_collector_state(second, through_a_file(collector_state(first)))
        for _ in range(3):
            assert_same(next(rollouts), next(others))


@pytest.mark.usefixtures("leaning")
def test_what_cannot_be_saved_is_named(build: Build) -> None:
    collector = build("Leaning-v0", 0, sticky=threading.Lock())
    with pytest.raises(UnsupportedStateError, match=r"Leaning.sticky cannot be saved: .*lock"):
        collector_state(collector)


def test_another_number_of_environments_is_refused(make_policy: MakePolicy) -> None:
    first, second = (
        make_collector(
            partial(make_env, "Pendulum-v1", num_envs=num_envs), None, frames_per_batch=6, seed=0
        )
        for num_envs in (2, 3)
    )
    message = "that of 2 environments, but here are 3; use num_envs=2"
    with pytest.raises(UnsupportedStateError, match=message):
        load_collector_state(second, collector_state(first))


def test_another_environment_is_refused(build: Build) -> None:
    first, second = build("Pendulum-v1", 0), build("MountainCarContinuous-v0", 0)
    with pytest.raises(UnsupportedStateError, match=r"was a .*PendulumEnv, but is a .*MountainCar"):
        load_collector_state(second, collector_state(first))


def test_worker_processes_are_refused() -> None:
    class Elsewhere(BaseCollector):
        def __init__(self) -> None: ...

        def __del__(self) -> None: ...

    Elsewhere.__abstractmethods__ = frozenset()
    with pytest.raises(UnsupportedStateError, match=r"Elsewhere cannot .* collect without workers"):
        collector_state(Elsewhere())


def test_environments_that_are_not_of_gymnasium_are_refused() -> None:
    env = SerialEnv(2, partial(GymEnv, "Pendulum-v1"))
    collector = Collector(env, None, frames_per_batch=4, total_frames=-1)
    with pytest.raises(UnsupportedStateError, match=r"SerialEnv cannot be saved.*make_env"):
        collector_state(collector)
    collector.shutdown()


class TestStreams:
    def on_policy(self, build: Build, seed: int) -> OnPolicyStream:
        collector = build("Hopper-v5", seed)
        return OnPolicyStream(
            collector,
            lambda rollout: rollout.reshape(-1),
            rows=12,
            minibatch_size=4,
            epochs=2,
            seed=seed,
        )

    def off_policy(self, build: Build, seed: int) -> OffPolicyStream:
        buffer = make_replay_buffer(40, batch_size=8, seed=seed)
        collector = build("Hopper-v5", seed, steps=1)
        return OffPolicyStream(collector, buffer, frames=10, updates_per_step=1.0)

    def test_an_on_policy_stream_continues(self, build: Build) -> None:
        first, second = self.on_policy(build, 0), self.on_policy(build, 1)
        for _ in range(5):
            list(first)
        second.load_state_dict(through_a_file(first.state_dict()))
        for _ in range(4):
            for ours, theirs in zip(first, second, strict=True):
                assert_same(ours, theirs)
        assert (first.frames, first.iteration) == (second.frames, second.iteration) == (108, 9)

    def test_an_off_policy_stream_continues(self, build: Build) -> None:
        first, second = self.off_policy(build, 0), self.off_policy(build, 1)
        for _ in range(5):
            list(first)
        state = through_a_file([first.state_dict(), replay_state(first.buffer)])
        second.load_state_dict(state[0])
        load_replay_state(second.buffer, state[1])
        for _ in range(4):
            for ours, theirs in zip(first, second, strict=True):
                assert_same(ours, theirs)
            assert first.episodes == second.episodes
        assert (first.collected, first.updates) == (second.collected, second.updates) == (90, 90)

    def test_without_the_collector_episodes_restart(self, build: Build) -> None:
        first, second = self.off_policy(build, 0), self.off_policy(build, 1)
        list(first)
        second.load_state_dict(first.state_dict(collector=False))
        list(second)
        assert (second.collected, second.updates) == (20, 20)
        assert int(second.buffer.storage[0]["step_count"]) == 0
