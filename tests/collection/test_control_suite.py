import importlib
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TransformObservation
from torchrl.envs.utils import check_env_specs

from collectors import derive_seed, make_collector, make_env
from diffpolicy.actors import build_ppo_networks


def flat(observation: dict[str, object]) -> np.ndarray:
    values = [np.ravel(observation[key]) for key in sorted(observation)]
    return np.concatenate(values).astype(np.float32)


@pytest.mark.parametrize(
    ("task", "observed"), [("walker-run", 24), ("pendulum-swingup", 3), ("ball_in_cup-catch", 8)]
)
def test_every_row_is_a_step_of_the_suite(task: str, observed: int) -> None:
    env = make_env(f"dmc:{task}", num_envs=2, seed=3, max_episode_steps=6)
    check_env_specs(env, seed=None)
    env.close()
    env_fn = partial(make_env, f"dmc:{task}", num_envs=2, max_episode_steps=6)
    collector = make_collector(env_fn, None, frames_per_batch=2 * 10, seed=3)
    rollout = next(iter(collector))
    collector.shutdown()
    assert rollout["observation"].shape == (2, 10, observed)
    suite = importlib.import_module("dm_control.suite")  # make_env has silenced its warnings
    for index in range(2):
        random = np.random.RandomState(derive_seed(3) + index)
        original = suite.load(*task.split("-"), task_kwargs={"random": random})
        original.reset()  # the seeded reset is TorchRL's, the collector then resets
        step = original.reset()
        for row in rollout[index]:
            np.testing.assert_allclose(row["observation"], flat(step.observation), rtol=1e-6)
            step = original.step(row["action"].numpy())
            following = row["next"]
            np.testing.assert_allclose(following["observation"], flat(step.observation), rtol=1e-6)
            assert following["reward"].item() == pytest.approx(step.reward, rel=1e-5, abs=1e-7)
            if following["done"]:
                step = original.reset()


def test_entries_are_float32() -> None:
    env = make_env("dmc:walker-run", num_envs=3)
    rollout = env.rollout(2)
    assert rollout["observation"].dtype == torch.float32
    assert rollout["next", "observation"].dtype == torch.float32
    assert rollout["next", "reward"].dtype == torch.float32
    assert rollout["action"].dtype == env.action_spec.dtype == torch.float32
    assert env.observation_spec["observation"].shape == (3, 24)


@pytest.mark.parametrize(("limit", "steps"), [(None, 1000), (3, 3), (1003, 1003)])
def test_the_time_limit_is_a_truncation(limit: int | None, steps: int) -> None:
    env = make_env("dmc:pendulum-swingup", max_episode_steps=limit)
    following = env.rollout(1100)["next"]
    assert following["truncated"].flatten().nonzero().flatten().tolist() == [steps - 1]
    assert not following["terminated"].any()
    assert following["step_count"][0, -1].item() == steps


def test_seeds() -> None:
    def reset(seed: int) -> torch.Tensor:
        return make_env("dmc:cheetah-run", num_envs=2, seed=seed).reset()["observation"]

    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert torch.equal(reset(0), reset(0))
    assert len(torch.cat([reset(0), reset(1)]).unique(dim=0)) == 4
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_actions_have_the_bounds_of_the_task() -> None:
    space = make_env("dmc:quadruped-run").action_spec.space
    assert space.low[0, :3].tolist() == [-1.0, -1.0, pytest.approx(-0.8)]
    assert space.high[0, :3].tolist() == [1.0, pytest.approx(1.1), pytest.approx(0.8)]
    space = make_env("dmc:quadruped-run", rescale_actions=True).action_spec.space
    assert space.low.unique().tolist() == [-1.0]
    assert space.high.unique().tolist() == [1.0]


def test_a_policy_acts_in_several_at_once() -> None:
    env_fn = partial(make_env, "dmc:cartpole-swingup_sparse", num_envs=4)
    env = env_fn()
    actor = build_ppo_networks(env, denoising_steps=2).actor
    env.close()
    collector = make_collector(env_fn, actor, frames_per_batch=8, seed=0)
    rollout = next(iter(collector))
    collector.shutdown()
    assert rollout["latents"].shape == (4, 2, 3, 1)
    assert len(rollout["action"].unique()) == 8


def test_arguments_reach_the_task_and_the_wrappers() -> None:
    env = make_env("dmc:pendulum-swingup", task_kwargs={"time_limit": 0.1}, max_episode_steps=100)
    assert env.rollout(100).shape == (1, 5)  # steps of 0.02 seconds
    double = partial(TransformObservation, func=lambda value: 2 * value, observation_space=None)
    env = make_env("dmc:walker-run", wrappers=[double], seed=0)
    plain = make_env("dmc:walker-run", seed=0)
    torch.testing.assert_close(env.reset()["observation"], 2 * plain.reset()["observation"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmc:cheetah-rum", "close matches: dmc:cheetah-run"),
        ("dmc:Cheetah-Run", "close matches: dmc:cheetah-run"),
        ("dmc:walker", "close matches: dmc:walker-"),
        ("dmc:nothing at all like it", "the domains are acrobot, ball_in_cup, cartpole, cheetah"),
        ("dmc:", "the domains are acrobot"),
        ("dmc:lqr-lqr_2_1", "is not supported: lqr has no bounds on its actions"),
    ],
)
def test_tasks_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make_env(name)
    assert str(raised.value).startswith(f"name={name!r} ")


@pytest.mark.parametrize("package", ["dm_control.suite", "shimmy"])
def test_a_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = r"^name='dmc:cheetah-run' .*not installed .*pip install 'diffpolicy\[dmc\]'\.$"
    with pytest.raises(ValueError, match=message):
        make_env("dmc:cheetah-run")


def test_warnings_are_not_filtered_afterwards() -> None:
    before = list(warnings.filters)
    make_env("dmc:pendulum-swingup").close()
    assert list(warnings.filters) == before
