"""Chunks of actions and histories of observations: exact rewards, ends, counts and frames."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict, unravel_key
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from collectors import (
    OffPolicyStream,
    collector_state,
    demonstrated_transitions,
    demonstrated_windows,
    environment_steps,
    evaluate,
    load_collector_state,
    make_collector,
    make_env,
    make_replay_buffer,
)
from diffpolicy.errors import ArgumentError
from objectives.functional import denoising_gae

GAMMA = 0.5


class Counting(gym.Env[Any, Any]):
    """Observes and rewards the number of steps; episodes end after five, or time is up after."""

    action_space = gym.spaces.Box(-1.0, 1.0, (2,))
    observation_space: gym.Space[Any] = gym.spaces.Box(0.0, 99.0, (1,))
    ends = 5

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.actions = 0, []
        return self.observe(), {}

    def observe(self) -> Any:
        return np.full(1, self.steps, np.float32)

    def step(self, action: Any) -> Any:
        assert self.steps < self.ends, "a step after the end"
        self.steps += 1
        self.actions.append(float(action[0]))
        return self.observe(), float(self.steps), self.steps == self.ends, False, {}


class Camera(Counting):
    """Observes the steps in an image and as a number."""

    observation_space = gym.spaces.Dict(
        {
            "count": gym.spaces.Box(0.0, 99.0, (1,)),
            "image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "first": gym.spaces.Box(0, 255, (1, 8, 8), np.uint8),
        }
    )

    def observe(self) -> Any:
        return {
            "count": np.full(1, self.steps, np.float32),
            "image": np.full((8, 8, 3), self.steps, np.uint8),
            "first": np.full((1, 8, 8), 10 * self.steps, np.uint8),
        }


def rollout(steps: int, num_envs: int = 1, **options: Any) -> Any:
    env = make_env(Counting, num_envs=num_envs, gamma=GAMMA, **options)
    return env.rollout(steps, break_when_any_done=False)["next"]


def test_a_chunk_sums_discounted_rewards_and_ends_with_the_episode() -> None:
    rows = rollout(4, num_envs=2, action_chunk=3)
    # Steps 1, 2, 3 and 4, 5; then a new episode.
    rewards = [1 + GAMMA * 2 + GAMMA**2 * 3, 4 + GAMMA * 5] * 2
    assert rows["reward"].squeeze(-1).tolist() == [rewards] * 2
    assert rows["chunk_steps"].squeeze(-1).tolist() == [[3, 2, 3, 2]] * 2
    assert rows["terminated"].squeeze(-1).tolist() == [[False, True] * 2] * 2
    assert rows["observation"].squeeze(-1).tolist() == [[3.0, 5.0] * 2] * 2
    assert rows["episode_reward"].squeeze(-1).tolist() == [[6.0, 15.0] * 2] * 2
    assert rows["step_count"].squeeze(-1).tolist() == [[3, 5] * 2] * 2


def test_a_time_limit_inside_of_a_chunk_truncates_it() -> None:
    rows = rollout(2, action_chunk=3, max_episode_steps=4)
    assert rows["truncated"].flatten().tolist() == [False, True]
    assert rows["terminated"].flatten().tolist() == [False, False]
    assert rows["chunk_steps"].flatten().tolist() == [3, 1]
    assert rows["reward"].flatten().tolist() == [1 + 2 * GAMMA + 3 * GAMMA**2, 4.0]


def test_copies_end_at_different_steps_and_scales_leave_statistics_alone() -> None:
    lengths = iter((5, 2))

    def make() -> gym.Env[Any, Any]:
        env = Counting()
        env.ends = next(lengths)
        return env

    env = make_env(make, num_envs=2, action_chunk=3, gamma=1.0, reward_scale=10.0)
    rows = env.rollout(2, break_when_any_done=False)["next"]
    assert rows["chunk_steps"].squeeze(-1).tolist() == [[3, 2], [2, 2]]
    assert rows["reward"].squeeze(-1).tolist() == [[60.0, 90.0], [30.0, 30.0]]
    assert rows["episode_reward"].squeeze(-1).tolist() == [[6.0, 15.0], [3.0, 3.0]]


def test_the_actions_of_a_plan_are_executed_in_their_order() -> None:
    env = make_env(Counting, action_chunk=2)
    assert env.action_spec.shape == (1, 4)
    state = env.reset().set("action", torch.tensor([[0.1, 0.0, 0.2, 0.0]]))
    env.step(state)
    inner: Any = env.base_env
    assert inner.base_env.envs[0].actions == pytest.approx([0.1, 0.2])


def test_a_copy_that_waits_stays_where_it_is() -> None:
    inner: Any = make_env(Counting, num_envs=2, action_chunk=2).base_env
    state = inner.reset().set("action", torch.zeros(2, 4))
    out = inner._step(state.set("_step", torch.tensor([True, False])))
    assert out["chunk_steps"].flatten().tolist() == [2, 0]
    assert out["observation"].flatten().tolist() == [2.0, 0.0]
    assert out["step_count"].flatten().tolist() == [2, 0]
    assert [copy.steps for copy in inner.base_env.envs] == [2, 0]


class Counter(EnvBase):
    """The same as a TorchRL environment."""

    def __init__(self, num_envs: int = 2) -> None:
        super().__init__(batch_size=[num_envs])
        self.action_spec = Bounded(-1.0, 1.0, (num_envs, 2))
        self.observation_spec = Composite(steps=Unbounded((num_envs, 1)), shape=[num_envs])
        self.reward_spec = Unbounded((num_envs, 1))
        self.done_spec = Categorical(2, shape=(num_envs, 1), dtype=torch.bool)
        self.steps = torch.zeros(num_envs, 1)

    def _reset(self, tensordict: Any = None, **options: Any) -> Any:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        zeros = torch.zeros_like(self.steps)
        self.steps = zeros if mask is None else torch.where(mask, zeros, self.steps)
        return TensorDict({"steps": self.steps, "done": zeros.bool()}, self.batch_size)

    def _step(self, tensordict: Any) -> Any:
        self.steps = self.steps + 1
        entries = {"steps": self.steps, "reward": self.steps.clone(), "done": self.steps >= 5}
        return TensorDict(entries, self.batch_size)

    def _set_seed(self, seed: Any) -> None:
        pass


def test_torchrl_environments_execute_chunks_and_keep_histories() -> None:
    env = make_env(Counter, num_envs=2, action_chunk=3, gamma=GAMMA, frame_stack=2)
    rows = env.rollout(3, break_when_any_done=False)
    following = rows["next"]
    assert following["chunk_steps"][0].flatten().tolist() == [3, 2, 3]
    assert following["reward"][1].flatten().tolist() == [2.75, 6.5, 2.75]
    assert following["step_count"][0].flatten().tolist() == [3, 5, 3]
    assert following["steps"][0].tolist() == [[2.0, 3.0], [4.0, 5.0], [2.0, 3.0]]
    assert rows["steps"][0].tolist() == [[0.0, 0.0], [2.0, 3.0], [0.0, 0.0]]


def test_evaluations_and_streams_count_environment_steps() -> None:
    policy = TensorDictModule(lambda x: torch.zeros(len(x), 6), ["observation"], ["action"])
    env = make_env(Counting, num_envs=2, action_chunk=3)
    assert evaluate(policy, env, 3, seed=0) == ([15.0] * 3, [5] * 3)
    collector = make_collector(
        lambda: make_env(Counting, num_envs=2, action_chunk=3), None, frames_per_batch=2, seed=0
    )
    buffer = make_replay_buffer(100, batch_size=4, seed=0)
    stream = OffPolicyStream(collector, buffer, frames=4, updates_per_step=0.5, keys=["action"])
    assert len(list(stream)) == 2
    assert stream.collected == 10
    assert stream.episodes.length_sum == 10
    assert environment_steps(buffer[:]) == 10
    collector.shutdown()


def test_the_state_of_chunks_and_histories_is_exact() -> None:
    def collector(seed: int) -> Any:
        return make_collector(
            lambda: make_env("Pendulum-v1", num_envs=2, action_chunk=3, frame_stack=3),
            None,
            frames_per_batch=14,
            seed=seed,
        )

    first, second = collector(0), collector(1)
    rollouts = iter(first)
    next(rollouts)
    load_collector_state(second, collector_state(first))
    expected, found = next(rollouts), next(iter(second))
    for key in ("observation", "action", ("next", "reward"), ("next", "step_count")):
        assert torch.equal(expected[key], found[key]), key
    first.shutdown()
    second.shutdown()


def test_frames_are_stacked_and_begin_with_the_first_one() -> None:
    env = make_env(Camera, frame_stack=3)
    rows = env.rollout(2)
    assert rows["observation", "count"][0].tolist() == [[0.0] * 3, [0.0, 0.0, 1.0]]
    following = rows["next", "observation"]
    assert following["count"][0].tolist() == [[0.0, 0.0, 1.0], [0.0, 1.0, 2.0]]
    image = following["image"]
    assert (image.shape, image.dtype) == ((1, 2, 8, 8, 9), torch.uint8)
    assert image[0, 1, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert following["first"][0, 1, :, 0, 0].tolist() == [0, 10, 20]


@pytest.mark.parametrize("name", ["action_chunk", "frame_stack"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}=0 must be an integer of at least 1"):
        make_env(Counting, **{name: 0})


def test_advantages_use_the_discount_of_each_transition() -> None:
    """One step of the chain per transition: gamma and gamma^3 in turn, by hand."""
    value = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    bootstrap = torch.tensor([[2.0], [4.0]])
    reward, flags = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    gamma = torch.tensor([[0.5], [0.125]])
    advantage, target = denoising_gae(
        value,
        bootstrap,
        reward,
        torch.zeros_like(value),
        flags,
        flags,
        temperature=0.0,
        gamma=gamma,
        lmbda=0.8,
    )
    last = 1 + 0.125 * 4 - 2
    first = 1 + 0.5 * 2 - 1 + 0.5 * 0.8 * last
    assert advantage.flatten().tolist() == pytest.approx([first, last])
    assert target.flatten().tolist() == pytest.approx([first + 1, last + 2])


def test_windows_of_demonstrations_are_what_the_environment_shows() -> None:
    keys = [("observation", name) for name in ("count", "image", "first")]
    shown = make_env(Camera, frame_stack=3, action_chunk=2).rollout(6, break_when_any_done=False)[0]
    taken = shown["next", "chunk_steps"].squeeze(-1).tolist()
    assert taken == [2, 2, 1, 2, 2, 1]
    planned = shown["action"].unflatten(-1, (2, 2))
    actions = torch.cat([plan[:count] for plan, count in zip(planned, taken, strict=True)])
    acted = iter(actions.unsqueeze(1))
    policy = TensorDictModule(lambda _: next(acted), [keys[0]], ["action"])
    single = make_env(Camera).rollout(10, policy, break_when_any_done=False)[0]

    windows = demonstrated_windows(single, keys, frame_stack=3, action_chunk=2)

    places = [0, 2, 4, 5, 7, 9]
    for key in keys:
        assert torch.equal(windows[key][places], shown[key]), key
    found = windows["action"].unflatten(-1, (2, 2))
    for place, plan, count in zip(places, planned, taken, strict=True):
        assert torch.equal(found[place][:count], plan[:count])
    # Behind the end of an episode its last action is repeated.
    assert torch.equal(found[4], actions[[4, 4]])
    flat = TensorDict({"done": single["next", "done"], **single.select(*keys, "action")}, [10])
    numbered = single.exclude("next", "done").set("episode", torch.arange(10) // 5)
    for other in (flat, numbered):
        assert (demonstrated_windows(other, keys, frame_stack=3, action_chunk=2) == windows).all()
    with pytest.raises(ArgumentError, match="does not say where episodes end"):
        demonstrated_windows(single.exclude("next"), keys, frame_stack=2)

    rows = demonstrated_transitions(single, keys, gamma=1.0, frame_stack=3, action_chunk=2)

    assert len(rows) == 10
    assert rows["steps_to_next_obs"].squeeze(-1)[places].tolist() == taken
    for key in (*keys, "reward", "done", "terminated"):
        following = unravel_key(("next", key))
        assert torch.equal(rows[following][places], shown[following]), key
    assert (rows.select(*keys, "action") == windows).all()


def test_transitions_of_data_that_break_off_are_whole_chunks() -> None:
    single = make_env(Counting, num_envs=1).rollout(8, break_when_any_done=False)[0]
    options = {"gamma": GAMMA, "action_chunk": 3}
    rows = demonstrated_transitions(single, ["observation"], **options)
    # An episode has five steps; of the second one three are there.
    assert rows["steps_to_next_obs"].squeeze(-1).tolist() == [3, 3, 3, 2, 1, 3]
    assert rows["next", "done"].squeeze(-1).tolist() == [False, False, True, True, True, False]
    expected = [1 + GAMMA * 2 + GAMMA**2 * 3, 4 + GAMMA * 5, 5.0]
    assert rows["next", "reward"].squeeze(-1)[[0, 3, 4]].tolist() == pytest.approx(expected)
