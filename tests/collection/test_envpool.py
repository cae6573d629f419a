"""EnvPool's tasks: every row a transition of the simulators that Gymnasium and dm_control have."""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import ClipReward
from scipy.stats import ks_2samp
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs import ExplorationType, RewardScaling
from torchrl.envs.utils import check_env_specs

from collectors import EnvPoolEnv, evaluate, make_collector, make_env
from collectors.environments.simulator_env import simulator_env
from diffpolicy.actors import build_ppo_networks
from diffpolicy.errors import ArgumentError
from diffpolicy.policy.spec import PolicySpec

envpool = pytest.importorskip("envpool")

MakePolicy = Callable[..., TensorDictModule]
SOURCES = ("envpool", "gymnasium")
make_pool = partial(make_env, source="envpool")
# In float32 an observation of 1 is known to 6e-8; simulators magnify that in an episode.
NEAR: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


def pool_of(env: Any) -> EnvPoolEnv:
    own = simulator_env(env)
    assert isinstance(own, EnvPoolEnv)
    return own


def collect(policy: Any, frames: int, seed: int = 0, **options: Any) -> TensorDictBase:
    collector = make_collector(
        partial(make_pool, **options), policy, frames_per_batch=frames, seed=seed
    )
    rollout = next(iter(collector)).clone()
    collector.shutdown()
    return rollout


def episodes(rollout: TensorDictBase) -> list[TensorDictBase]:
    """The episodes of a rollout ``[E, T]`` one after the other, also those that go on."""
    found = []
    for row in rollout:
        ends = row["next", "done"].flatten().nonzero().flatten().tolist()
        begins = [0, *(end + 1 for end in ends)]
        found += [row[a:b] for a, b in zip(begins, [*begins[1:], len(row)], strict=True) if a < b]
    return found


class TestGymnasiumsPhysics:
    """Episodes of a collector again in Gymnasium, from where they began."""

    @pytest.mark.parametrize(
        ("name", "limit", "sizes"),
        [
            ("InvertedPendulum-v5", None, (4, 1, 3.0)),
            ("HalfCheetah-v5", 15, (18, 6, 1.0)),
            ("Hopper-v5", None, (12, 3, 1.0)),
            ("Walker2d-v5", None, (18, 6, 1.0)),
            ("Swimmer-v5", 15, (10, 2, 1.0)),
            ("Ant-v5", 15, (107, 8, 1.0)),
            ("Humanoid-v5", None, (350, 17, 0.4)),
        ],
    )
    def test_rows_are_steps_of_mujoco(
        self, name: str, limit: int | None, sizes: Any, make_policy: MakePolicy
    ) -> None:
        options: dict[str, Any] = {"max_episode_steps": limit}
        if "Pendulum" not in name:
            options["exclude_current_positions_from_observation"] = False
        rollout = collect(make_policy(*sizes), 3 * 60, name=name, num_envs=3, **options)
        theirs = gym.make(name, **options)
        model = theirs.unwrapped.model
        count = 0
        for episode in episodes(rollout):
            theirs.reset()
            state = episode["observation"][0].double().numpy()
            theirs.unwrapped.set_state(*np.split(state, [model.nq, model.nq + model.nv])[:2])
            count += self.compare(episode, theirs)
        assert count == 180
        assert len(episodes(rollout)) > 6

    def test_rows_are_steps_of_a_pendulum(self) -> None:
        rollout = collect(None, 2 * 30, name="Pendulum-v1", num_envs=2, max_episode_steps=7)
        theirs = gym.make("Pendulum-v1", max_episode_steps=7)
        for episode in episodes(rollout):
            theirs.reset()
            cosine, sine, speed = episode["observation"][0].double().tolist()
            theirs.unwrapped.state = np.array([np.arctan2(sine, cosine), speed])
            self.compare(episode, theirs)
        assert rollout["next", "truncated"].sum() == 2 * 4

    def compare(self, episode: TensorDictBase, theirs: gym.Env[Any, Any]) -> int:
        steps, total = 0, 0.0
        for row in episode:
            assert row["step_count"].item() == steps
            observation, reward, terminated, truncated, _ = theirs.step(row["action"].numpy())
            steps, total = steps + 1, total + float(reward)
            following = row["next"]
            np.testing.assert_allclose(following["observation"], observation, **NEAR)
            np.testing.assert_allclose(following["reward"].item(), float(reward), **NEAR)
            assert following["terminated"].item() == terminated
            assert following["truncated"].item() == truncated
            assert following["done"].item() == (terminated or truncated)
            assert following["step_count"].item() == steps
            assert following["episode_reward"].item() == pytest.approx(total, rel=1e-3, abs=1e-2)
        return steps


def test_what_the_control_suite_observes() -> None:
    for task in ("quadruped-run", "finger-spin", "fish-upright", "humanoid-run", "cheetah-run"):
        ours, theirs = (make_env(f"dmc:{task}", source=source) for source in SOURCES)
        assert ours.observation_spec == theirs.observation_spec, task
        assert ours.action_spec == theirs.action_spec, task


@pytest.mark.slow
def test_all_tasks_of_the_control_suite() -> None:
    suite = pytest.importorskip("dm_control.suite")
    for domain, task in suite.ALL_TASKS:
        if domain != "lqr":
            ours = make_pool(f"dmc:{domain}-{task}")
            theirs = suite.load(domain, task)
            sizes = [int(np.prod(spec.shape)) for spec in theirs.observation_spec().values()]
            assert ours.observation_spec["observation"].shape == (1, sum(sizes)), (domain, task)
            assert pool_of(ours).task.max_episode_steps == theirs._step_limit


@pytest.mark.parametrize("task", ["cheetah-run", "point_mass-easy", "cartpole-swingup"])
def test_rows_are_steps_of_the_control_suite(task: str) -> None:
    suite = pytest.importorskip("dm_control.suite")
    rollout = collect(None, 2 * 40, name=f"dmc:{task}", num_envs=2, max_episode_steps=20)
    theirs = suite.load(*task.split("-"))
    for episode in episodes(rollout):
        theirs.reset()  # of which the state, not the model, is replaced
        observed = episode["observation"][0].double().numpy()
        with theirs.physics.reset_context():
            self_set(task, theirs.physics.data, observed)
        for row in episode:
            step = theirs.step(row["action"].numpy())
            values = [np.ravel(step.observation[key]) for key in sorted(step.observation)]
            following = row["next"]
            np.testing.assert_allclose(following["observation"], np.concatenate(values), **NEAR)
            np.testing.assert_allclose(following["reward"].item(), step.reward, **NEAR)
    assert rollout["next", "truncated"].sum() == 4
    assert not rollout["next", "terminated"].any()


def self_set(task: str, data: Any, observed: np.ndarray) -> None:
    """Put a simulator of the control suite into an observed state."""
    if task.startswith("cartpole"):
        place, cosine, sine, *speeds = observed
        data.qpos[:], data.qvel[:] = [place, np.arctan2(sine, cosine)], speeds
        return
    if task.startswith("cheetah"):
        data.qpos[1:] = observed[:8]
    else:
        data.qpos[:] = observed[: len(data.qpos)]
    data.qvel[:] = observed[-len(data.qvel) :]


class TestEnds:
    def test_only_what_has_finished_is_reset(self, make_policy: MakePolicy) -> None:
        env = make_pool("InvertedPendulum-v5", num_envs=4, seed=1)
        rollout = env.rollout(60, make_policy(4, 1, 3.0), break_when_any_done=False)
        done = rollout["next", "done"][:, :-1, 0]
        assert 0 < done.sum() < done.numel()
        before, after = rollout["next", "observation"][:, :-1], rollout["observation"][:, 1:]
        assert torch.equal((before == after).all(-1), ~done)
        assert torch.equal(rollout["step_count"][:, 1:, 0] == 0, done)
        env.close()

    def test_a_task_may_end_at_its_time_limit(self, make_policy: MakePolicy) -> None:
        policy = make_policy(4, 1, 3.0)
        options: dict[str, Any] = {"name": "InvertedPendulum-v5", "num_envs": 1}
        first = episodes(collect(policy, 60, **options))[0]["next"]
        assert first["terminated"][-1]
        assert not first["truncated"].any()
        length = len(first)
        cut = episodes(collect(policy, 60, max_episode_steps=length, **options))[0]["next"]
        assert torch.equal(cut["observation"], first["observation"])
        assert cut["terminated"][-1]
        assert cut["truncated"].flatten().tolist() == [False] * (length - 1) + [True]

    def test_the_time_limits_are_gymnasiums(self) -> None:
        for name in ("Pendulum-v1", "Hopper-v5", "Reacher-v5", "MountainCarContinuous-v0"):
            limit = gym.registry[name].max_episode_steps
            assert pool_of(make_pool(name)).task.max_episode_steps == limit
        assert pool_of(make_pool("dmc:ball_in_cup-catch")).task.max_episode_steps == 1000

    def test_a_finished_episode_has_no_next_step(self) -> None:
        env = make_pool("Pendulum-v1", num_envs=2, seed=0, max_episode_steps=2)
        with pytest.raises(RuntimeError, match=r"Pendulum-v1 .* has not begun; reset it first"):
            env.step(env.rand_action())
        rows = env.rollout(2)
        last = rows[:, -1]["next"].clone().set("action", env.action_spec.rand())
        with pytest.raises(RuntimeError, match="whose episode has ended"):
            env.step(last)

    def test_copies_that_wait_stay_where_they_are(self) -> None:
        env = make_pool("Pendulum-v1", num_envs=3, seed=0)
        twin = make_pool("Pendulum-v1", num_envs=3, seed=0)
        state, other = env.reset(), twin.reset()
        chosen = torch.tensor([True, False, True])
        action = torch.full((3, 1), 0.5)
        stepped = env.step(state.clone().set("action", action).set("_step", chosen))["next"]
        expected = twin.step(other.set("action", action))["next"]
        assert torch.equal(stepped["observation"][chosen], expected["observation"][chosen])
        assert torch.equal(stepped["observation"][~chosen], state["observation"][~chosen])
        one = torch.tensor([[False], [True], [False]])
        again = env.reset(stepped.clone().set("_reset", one))
        assert torch.equal(again["observation"][[0, 2]], stepped["observation"][[0, 2]])
        assert not torch.equal(again["observation"][1], stepped["observation"][1])


class TestEntries:
    @pytest.mark.parametrize("num_envs", [1, 3])
    @pytest.mark.parametrize(
        ("name", "observed"), [("HalfCheetah-v5", 17), ("dmc:walker-run", 24), ("Pendulum-v1", 3)]
    )
    def test_specs_match_the_data(self, name: str, observed: int, num_envs: int) -> None:
        env = make_pool(name, num_envs=num_envs, seed=0, reward_scale=0.1)
        assert env.batch_size == (num_envs,)
        assert env.observation_spec["observation"].shape == (num_envs, observed)
        check_env_specs(env, seed=None)
        assert env.rollout(2)["next", "reward"].shape == (num_envs, 2, 1)
        env.close()

    def test_spaces_are_those_of_gymnasium(self) -> None:
        for name in ("HalfCheetah-v5", "Humanoid-v5", "Ant-v5", "Pusher-v5"):
            ours, theirs = make_pool(name), make_env(name)
            assert ours.action_spec == theirs.action_spec
            assert ours.observation_spec == theirs.observation_spec
            assert not len(ours.transform)  # it counts steps and sums rewards itself

    @pytest.mark.parametrize("frames", [1, 3])
    def test_policies_are_those_of_gymnasium(self, frames: int) -> None:
        both: list[Any] = [
            PolicySpec.of(build_ppo_networks(env, denoising_steps=2).actor, env)
            for env in (make_env("HalfCheetah-v5", frame_stack=frames, source=s) for s in SOURCES)
        ]
        ours, theirs = (spec.plain() for spec in both)
        assert ours["frames"] == frames
        ours["action"]["dtype"] = "float32"  # in EnvPool it is float64
        assert ours == theirs

    def test_dictionaries_are_entries(self) -> None:
        env = make_pool("FetchReach-v4", num_envs=2, seed=0)
        check_env_specs(env, seed=None)
        sizes = {key: value.shape[1] for key, value in env.reset()["observation"].items()}
        assert sizes == {"achieved_goal": 3, "desired_goal": 3, "observation": 10}
        some = make_pool("FetchReach-v4", observation_keys=["desired_goal", "observation"])
        assert list(some.reset()["observation"].keys()) == ["desired_goal", "observation"]
        with pytest.raises(ArgumentError, match=r"^observation_keys='goal' is not observed by"):
            make_pool("FetchReach-v4", observation_keys=["goal"])

    def test_actions_are_rescaled_and_clipped(self) -> None:
        env = make_pool("InvertedPendulum-v5", rescale_actions=True, seed=0)
        plain = make_pool("InvertedPendulum-v5", seed=0)
        assert plain.action_spec.space.high.tolist() == [[3.0]]
        rows = [
            e.step(e.reset().set("action", torch.tensor([[a]])))["next", "observation"]
            for e, a in ((env, 1.0), (plain, 3.0))
        ]
        assert torch.equal(*rows)

    def test_arguments_and_wrappers_reach_the_task(self) -> None:
        env = make_pool(
            "Hopper-v5",
            seed=0,
            healthy_reward=100.0,
            num_threads=1,
            wrappers=[lambda env: env.append_transform(RewardScaling(0.0, 2.0))],
        )
        assert 190 < env.rollout(1)["next", "reward"].item() < 210

    @pytest.mark.parametrize("chunk", [1, 3])
    def test_histories_and_chunks(self, chunk: int) -> None:
        options = {"num_envs": 2, "seed": 0, "max_episode_steps": 5}
        env = make_pool("Pendulum-v1", frame_stack=3, action_chunk=chunk, **options)
        rows = env.rollout(6, break_when_any_done=False)
        assert rows["observation"].shape == (2, 6, 9)
        first = rows["observation"][:, rows["step_count"][0, :, 0] == 0]
        assert torch.equal(first[..., :3], first[..., 6:])
        if chunk == 1:
            later = rows["next", "observation"]
            assert torch.equal(later[..., :6], rows["observation"][..., 3:])
            assert not torch.equal(later[..., 6:], later[..., 3:6])
        ends = rows["next", "truncated"][0, :, 0]
        assert rows["next", "step_count"][0, ends, 0].unique().tolist() == [5]
        plain = make_pool("Pendulum-v1", **options)
        state = plain.reset()
        for action in rows["action"][:, 0].split(1, dim=-1):
            state = plain.step(state.set("action", action))["next"]
        assert torch.equal(rows["next", "observation"][:, 0, -3:], state["observation"])


class TestSeeds:
    def reset(self, seed: int | None, num_envs: int = 4, **options: Any) -> torch.Tensor:
        env = make_pool("HalfCheetah-v5", num_envs=num_envs, seed=seed, **options)
        observation: torch.Tensor = env.reset()["observation"]
        env.close()
        return observation

    def test_the_same_seed_gives_the_same_states(self) -> None:
        assert torch.equal(self.reset(3), self.reset(3))
        assert torch.equal(self.reset(3), self.reset(3, num_threads=1))

    def test_all_others_give_others(self) -> None:
        states = [self.reset(seed) for seed in (0, 1, None, None)]
        assert len(torch.cat(states).unique(dim=0)) == 16

    def test_the_largest_seeds(self) -> None:
        env = make_pool("Pendulum-v1", num_envs=3)
        env.set_seed(2**31 - 1, static_seed=True)
        assert len(env.reset()["observation"].unique(dim=0)) == 3

    def test_seeding_leaves_the_global_random_state_alone(self) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        self.reset(None)
        self.reset(0)
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002

    def test_rollouts_do_not_depend_on_the_number_of_threads(self, make_policy: MakePolicy) -> None:
        options: dict[str, Any] = {"name": "Hopper-v5", "num_envs": 5}
        first, second = (
            collect(make_policy(11, 3), 5 * 40, num_threads=count, **options) for count in (1, 3)
        )
        assert torch.equal(first["next", "observation"], second["next", "observation"])


class TestDistributions:
    """Kolmogorov-Smirnov tests against Gymnasium's own episodes; seeds are fixed."""

    def episodes(self, policy: Any, name: str, source: str, count: int) -> Any:
        env = make_env(name, num_envs=count, source=source)
        found = evaluate(policy, env, count, seed=0, exploration_type=ExplorationType.RANDOM)
        env.close()
        return found

    @pytest.mark.parametrize(
        ("name", "sizes"),
        [
            ("InvertedPendulum-v5", (4, 1, 3.0)),
            pytest.param("Hopper-v5", (11, 3, 1.0), marks=pytest.mark.slow),
        ],
    )
    def test_returns_and_lengths(self, name: str, sizes: Any, make_policy: MakePolicy) -> None:
        policy = make_policy(*sizes)
        ours, theirs = (self.episodes(policy, name, source, 200) for source in SOURCES)
        for mine, other in zip(ours, theirs, strict=True):
            assert ks_2samp(mine, other).pvalue > 0.05
        # A test of this size sees a policy that acts a little differently.
        policy.module.bound = 0.1 * sizes[2]
        weaker = self.episodes(policy, name, "envpool", 200)
        assert ks_2samp(weaker[0], theirs[0]).pvalue < 0.01

    @pytest.mark.parametrize("name", ["HalfCheetah-v5", "Pendulum-v1", "dmc:cheetah-run"])
    def test_first_states(self, name: str) -> None:
        ours, theirs = (
            torch.cat([env.reset()["observation"] for _ in range(40)])
            for env in (make_env(name, num_envs=5, seed=0, source=s) for s in SOURCES)
        )
        for mine, other in zip(ours.T, theirs.T, strict=True):
            assert ks_2samp(mine, other).pvalue > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["process", "ray"])
def test_workers_share_the_copies(backend: Any) -> None:
    if backend == "ray":
        pytest.importorskip("ray")
    rollouts = []
    for seed in (0, 0, 1):
        collector = make_collector(
            partial(make_pool, "Pendulum-v1", num_envs=2, max_episode_steps=4),
            None,
            frames_per_batch=40,
            seed=seed,
            backend=backend,
            num_workers=2,
        )
        rollouts.append(next(iter(collector)).clone())
        collector.shutdown()
    first, again, other = rollouts
    assert first["next", "truncated"].sum() == 8
    assert len(first["observation"][:, 0].unique(dim=0)) == 4
    assert torch.equal(first["next", "observation"], again["next", "observation"])
    assert not torch.equal(first["observation"], other["observation"])


class TestOtherTasks:
    @pytest.mark.parametrize("name", ["MetaWorld/Reach-v3", "MountainCarContinuous-v0"])
    def test_they_run(self, name: str) -> None:
        env = make_pool(name, num_envs=2, seed=0, max_episode_steps=4)
        rows = env.rollout(6, break_when_any_done=False)
        assert rows["next", "truncated"][..., 0].nonzero()[:, 1].tolist() == [3, 3]
        assert rows["next", "step_count"][0].flatten().tolist() == [1, 2, 3, 4, 1, 2]
        for key in ("observation", "reward"):
            assert rows["next", key].isfinite().all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("HalfCheeta-v5", r"^name='HalfCheeta-v5' is not a task of EnvPool; .*HalfCheetah-v5"),
            ("dmc:cheetah-rum", "close matches: dmc:cheetah-run"),
            ("nothing at all like it", r"envpool.list_all_envs\(\) lists them"),
            ("TurningDoubleWell-v0", "of Gymnasium that EnvPool does not have; leave out source"),
            ("CartPole-v1", r"has the action space Discrete\(2\)"),
            (lambda: gym.make("Pendulum-v1"), "EnvPool runs only its own tasks"),
        ],
    )
    def test_what_is_no_task(self, name: Any, message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            make_pool(name)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"healthy_rewards": 1.0}, "does not take 'healthy_rewards' here; .*healthy_reward"),
            ({"render_mode": "human"}, "does not take 'render_mode' here; "),
            ({"batch_size": 1}, "does not take 'batch_size' here; "),
            ({"healthy_reward": "much"}, "a value is of the wrong type"),
        ],
    )
    def test_arguments_that_do_not_suit(self, arguments: Any, message: str) -> None:
        with pytest.raises(ArgumentError, match=rf"^env_kwargs=.* suit Hopper-v5 .*{message}"):
            make_pool("Hopper-v5", **arguments)

    @pytest.mark.parametrize(
        "wrapper", ["gymnasium.wrappers:NormalizeReward", lambda env: ClipReward(env, 0.0, 1.0)]
    )
    def test_wrappers_of_gymnasium(self, wrapper: Any) -> None:
        with pytest.raises(ArgumentError, match=r"^wrappers=.* is for an environment of Gymnasium"):
            make_pool("Pendulum-v1", wrappers=[wrapper])

    def test_another_source(self) -> None:
        with pytest.raises(ArgumentError, match=r"^source='pool' must be gymnasium or envpool\.$"):
            make_env("Pendulum-v1", source="pool")  # type: ignore[arg-type]

    def test_a_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "envpool", None)
        message = r"^source='envpool' needs EnvPool, .*; pip install 'diffpolicy\[envpool\]'\.$"
        with pytest.raises(ArgumentError, match=message):
            make_pool("Pendulum-v1")


def test_importing_the_library_does_not_import_it() -> None:
    source = importlib.import_module("collectors.environments.envpool_env")
    assert not hasattr(source, "envpool")
