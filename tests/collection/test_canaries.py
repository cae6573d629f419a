"""Environments with the habits of real ones, in every backend: what is stored is what happened."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs import GymEnv, SerialEnv

from collectors import (
    CollectionError,
    NonFiniteError,
    RandomStream,
    collector_state,
    evaluate,
    load_collector_state,
    make_collector,
    make_env,
)
from collectors.collection.rollouts import RolloutReader
from diffpolicy.errors import ArgumentError

FRAMES = 60


@pytest.fixture(autouse=True)
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the environments, which worker processes can import as well."""
    folder = str(Path(__file__).parents[1] / "faulty")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder, prepend=":")
    import canaries

    yield canaries
    canaries.Single.alive = canaries.Counter.steps = 0


def env_of(name: str, **options: Any) -> Any:
    return partial(make_env, f"canaries:{name}-v0", num_envs=2, **options)


class Act(torch.nn.Module):
    """Acts by the step of the episode and remembers what it has chosen."""

    def __init__(self, low: float = -1.0, high: float = 1.0, size: int = 1) -> None:
        super().__init__()
        self.low, self.high, self.size = low, high, size
        self.chosen: list[torch.Tensor] = []

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        share = (0.5 + 0.5 * torch.sin(step.float() + 1)).expand(*step.shape[:-1], self.size)
        action = (self.low + (self.high - self.low) * share).clamp(self.low, self.high)
        self.chosen.append(action.clone())
        return action


def policy(**options: Any) -> TensorDictModule:
    return TensorDictModule(Act(**options), in_keys=["step_count"], out_keys=["action"])


def collect(
    name: str, seed: int = 0, acting: Any = None, backend: str = "local", **options: Any
) -> TensorDictBase:
    workers = 0 if backend == "local" else 1
    collector = make_collector(
        env_of(name, **options),
        policy() if acting is None else acting,
        frames_per_batch=FRAMES,
        seed=seed,
        backend=backend,
        num_workers=workers,
    )
    rollout = RolloutReader(collector).read().clone()
    collector.shutdown()
    return rollout


def assert_same(first: TensorDictBase, second: TensorDictBase) -> None:
    for key in ("action", "done", "observation", ("next", "observation")):
        assert torch.equal(first[key], second[key]), key
    for key in ("reward", "terminated", "truncated", "episode_reward"):
        assert torch.equal(first["next", key], second["next", key]), key


class TestHabits:
    @pytest.mark.parametrize("name", ["InPlace", "Reused", "Kinds", "Options"])
    def test_rows_are_those_of_the_plain_cart(self, name: str) -> None:
        assert_same(collect(name), collect("Plain"))

    @pytest.mark.parametrize("random_frames", [0, FRAMES])
    def test_the_stored_action_is_the_chosen_one(self, random_frames: int) -> None:
        acting = policy()
        collector = make_collector(
            env_of("InPlace"),
            acting,
            frames_per_batch=FRAMES,
            seed=0,
            random_frames=random_frames,
        )
        acting.module.chosen.clear()
        rollout = next(iter(collector))
        received = [env.unwrapped.received for env in collector.env.base_env.envs]
        assert rollout["action"].squeeze(-1).tolist() == received
        if not random_frames:
            chosen = torch.stack(acting.module.chosen, 1)
            assert torch.equal(rollout["action"], chosen)
        collector.shutdown()

    def test_integers_as_rewards(self) -> None:
        rollout = collect("WholeNumbers")
        assert rollout["next", "reward"][0, :3, 0].tolist() == [1.0, 2.0, 3.0]

    def test_float16_becomes_float32(self) -> None:
        rollout, plain = collect("Half"), collect("Plain")
        assert rollout["observation"].dtype == torch.float32
        assert torch.equal(rollout["observation"], plain["observation"].half().float())

    @pytest.mark.parametrize("side", [-50.0, 50.0])
    def test_actions_stay_inside_of_bounds_that_float32_rounds(self, side: float) -> None:
        env = env_of("Strict")()
        low, high = env.action_spec_unbatched.space.low, env.action_spec_unbatched.space.high
        assert float(low) >= -0.1
        assert float(high) <= 0.7
        outermost = low if side < 0 else high
        state = env.reset().set("action", outermost.expand(2, 1).clone())
        env.step(state)  # raises if it is outside
        assert env.base_env.envs[0].unwrapped.received[-1] == float(outermost)

    @pytest.mark.parametrize("seed", range(3))
    def test_random_bounds_are_never_left(self, seed: int) -> None:
        """Two-decimal bounds of any type: rounded inwards, and what arrives is of the space."""
        import gymnasium as gym

        from collectors.environments.spaces import Actions

        rng = np.random.default_rng(seed)
        for dtype in (np.float16, np.float32, np.float64):
            corner = np.round(rng.uniform(-3, 3, (2, 200)), 2).astype(dtype)
            space = gym.spaces.Box(corner.min(0) - dtype(0.5), corner.max(0), dtype=dtype)
            actions = Actions.of("any", space)
            assert (actions.low.astype(np.float64) >= space.low.astype(np.float64)).all()
            assert (actions.high.astype(np.float64) <= space.high.astype(np.float64)).all()
            for action in (actions.low, actions.high, actions.high + 1):
                assert space.contains(actions.to_environment(action.astype(np.float32)))

    def test_actions_of_any_shape_are_vectors(self) -> None:
        rollout = collect("MatrixActions", acting=policy(size=4))
        assert rollout["action"].shape[-1] == 4
        assert torch.equal(rollout["observation"], collect("Plain")["observation"])


class TestEntries:
    def test_every_kind_is_flattened(self) -> None:
        rollout, flat = collect("Mixed"), collect("Flat")
        entries = rollout["observation"]
        parts = [
            *("bits", "choices", "count", "flag", "grid"),
            *(("inner", "pair", "0"), ("inner", "pair", "1"), "number", "phase"),
        ]
        joined = torch.cat([entries[part] for part in parts], -1)
        assert torch.equal(joined, flat["observation"])
        assert {value.dtype for value in entries.values(True, True)} == {torch.float32}

    def test_names_of_the_library_are_names_like_any_other(self, canaries: Any) -> None:
        rollout, plain = collect("Reserved"), collect("Plain")
        place, time, move = plain["observation"].unbind(-1)
        for index, name in enumerate(canaries.RESERVED):
            found = rollout["observation", name].squeeze(-1)
            assert torch.allclose(found, place + index + time * move, atol=1e-6), name
        assert torch.equal(rollout["action"], plain["action"])
        assert torch.equal(rollout["next", "reward"], plain["next", "reward"])

    def test_entries_can_be_chosen_and_ordered(self) -> None:
        rollout = collect("Mixed", observation_keys=["phase", "inner.pair.0"])
        keys = rollout["observation"].keys(True, True)
        assert sorted(map(str, keys)) == ["('inner', 'pair', '0')", "phase"]

    def test_what_has_no_fixed_size_is_refused_by_name(self) -> None:
        with pytest.raises(ArgumentError, match=r"observation_keys='words' is a Text") as raised:
            env_of("Text")()
        assert raised.value.argument == "observation_keys"
        rollout = collect("Text", observation_keys=["numbers"])
        assert torch.equal(rollout["observation", "numbers"], collect("Plain")["observation"])

    def test_unknown_entries_are_refused_with_the_choices(self) -> None:
        with pytest.raises(ArgumentError, match=r"'speed' is not observed by canaries:Mixed-v0"):
            env_of("Mixed", observation_keys=["speed"])()

    def test_what_is_not_of_the_space_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import canaries

        observe = canaries.Mixed.observe
        monkeypatch.setattr(canaries.Mixed, "observe", lambda self: {**observe(self), "phase": 2})
        with pytest.raises(ValueError, match=r"observes 2, which is not in Discrete\(3"):
            env_of("Mixed")().reset()

    def test_a_missing_entry_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import canaries

        monkeypatch.setattr(canaries.Mixed, "observe", lambda self: {"bits": [0, 1]})
        with pytest.raises(ValueError, match=r"lacks choices, which its space has"):
            env_of("Mixed")().reset()


class TestGenerators:
    NAMES = ("GlobalNumpy", "GlobalPython", "GlobalTorch")

    @pytest.mark.parametrize("name", NAMES)
    def test_collecting_follows_the_seed_alone(self, name: str) -> None:
        first = collect(name, seed=1)
        np.random.rand(), random.random(), torch.rand(())  # noqa: NPY002
        before = states()
        again = collect(name, seed=1)
        assert states() == before
        assert_same(first, again)
        assert not torch.equal(first["observation"], collect(name, seed=2)["observation"])

    @pytest.mark.parametrize("name", NAMES)
    def test_evaluations_follow_the_seed_alone(self, name: str) -> None:
        env = env_of(name)()
        acting = policy()
        before = states()
        first = evaluate(acting, env, 4, seed=5)
        assert states() == before
        np.random.rand(), random.random(), torch.rand(())  # noqa: NPY002
        assert evaluate(acting, env, 4, seed=5) == first
        assert evaluate(acting, env, 4, seed=6) != first

    @pytest.mark.parametrize("name", NAMES)
    def test_an_evaluation_does_not_change_what_is_collected(self, name: str) -> None:
        def collected(evaluations: int) -> TensorDictBase:
            collector = make_collector(env_of(name), policy(), frames_per_batch=24, seed=3)
            reader = RolloutReader(collector)
            reader.read()
            for _ in range(evaluations):
                evaluate(policy(), env_of(name)(), 2, seed=0)
            rollout = reader.read().clone()
            collector.shutdown()
            return rollout

        assert_same(collected(0), collected(2))

    @pytest.mark.parametrize("name", NAMES)
    def test_a_saved_state_continues_them(self, name: str) -> None:
        first = make_collector(env_of(name), policy(), frames_per_batch=24, seed=3)
        reader = RolloutReader(first)
        reader.read()
        state = collector_state(first)
        expected = [reader.read().clone() for _ in range(3)]
        second = make_collector(env_of(name), policy(), frames_per_batch=24, seed=9)
        load_collector_state(second, state)
        reader = RolloutReader(second)
        for rollout in expected:
            assert_same(reader.read(), rollout)
        first.shutdown()
        second.shutdown()

    def test_a_seeded_environment_starts_from_its_seed(self) -> None:
        def start(seed: int) -> list[float]:
            env = env_of("GlobalPython", seed=seed)()
            return [copy.unwrapped.place for copy in env.base_env.envs]

        before = states()
        assert start(0) == start(0)
        assert start(0) != start(1)
        assert states() == before


def states() -> list[Any]:
    """The global generators, in a form that can be compared."""
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002
    return [keys.tolist(), position, random.getstate(), torch.get_rng_state().tolist()]


def test_a_random_stream_does_not_lose_the_second_half_of_a_pair() -> None:
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.randn(4).tolist()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    drawn = [np.random.randn()]  # noqa: NPY002 -- the generator keeps another one
    with RandomStream(7) as stream:
        inside = np.random.randn()  # noqa: NPY002
    drawn += [np.random.randn() for _ in range(3)]  # noqa: NPY002
    assert drawn == expected
    with stream:
        following = np.random.randn()  # noqa: NPY002
    with RandomStream(7):
        assert [np.random.randn(), np.random.randn()] == [inside, following]  # noqa: NPY002


class TestOutside:
    @pytest.mark.parametrize(
        ("name", "where"),
        [
            ("Counter", "Counter.steps"),
            ("ModuleGenerator", "canaries.generator"),
        ],
    )
    def test_state_on_classes_and_in_modules_is_noticed(self, name: str, where: str) -> None:
        collector = make_collector(env_of(name), policy(), frames_per_batch=24, seed=0)
        RolloutReader(collector).read()
        assert collector_state(collector)["outside"] == [where]
        collector.shutdown()

    @pytest.mark.parametrize("name", ["Plain", "GlobalNumpy", "Mixed"])
    def test_others_have_none(self, name: str) -> None:
        collector = make_collector(env_of(name), policy(), frames_per_batch=24, seed=0)
        RolloutReader(collector).read()
        assert collector_state(collector)["outside"] == []
        collector.shutdown()

    @pytest.mark.parametrize(
        "change",
        [
            lambda cls: cls.table.append(1),
            lambda cls: cls.grid.__setitem__(0, 1.0),
            lambda cls: next(cls.counter),
            lambda cls: cls.thing.__dict__.update(x=2),
            lambda cls: setattr(cls, "new", 1),
            lambda cls: cls.inner["a"].add(3),
        ],
    )
    def test_containers_arrays_and_objects_too(
        self, change: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import itertools
        from types import SimpleNamespace

        import canaries

        for attribute, value in {
            "table": [],
            "grid": np.zeros(2),
            "counter": itertools.count(),
            "thing": SimpleNamespace(x=1),
            "inner": {"a": {1}},
        }.items():
            monkeypatch.setattr(canaries.Plain, attribute, value, raising=False)
        env = env_of("Plain")().base_env
        assert env.changed_outside() == []
        change(canaries.Plain)
        (name,) = env.changed_outside()
        assert name.startswith("Plain.")
        vars(canaries.Plain).get("new") and delattr(canaries.Plain, "new")


class TestRefusals:
    def test_the_reset_of_old_versions(self) -> None:
        with pytest.raises(ArgumentError, match=r"reset\(\) that takes no seed, as Gym had it"):
            env_of("OldReset")()

    def test_the_step_of_old_versions(self) -> None:
        with pytest.raises(CollectionError, match=r"step\(\).* must return .* got 4 values"):
            collect("OldStep")

    def test_a_reward_of_several_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import canaries

        step = canaries.Plain.step
        monkeypatch.setattr(
            canaries.Plain, "step", lambda self, a: (step(self, a)[0], np.ones(2), False, False, {})
        )
        with pytest.raises(CollectionError, match=r"reward must be one number, got .*\(2,\)"):
            collect("Plain")

    def test_an_observation_of_another_shape(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import canaries

        monkeypatch.setattr(canaries.Plain, "observe", lambda self: np.zeros(4))
        with pytest.raises(ValueError, match=r"observes observation of the shape \(4,\)"):
            env_of("Plain")().reset()

    def test_numbers_too_large_for_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import canaries

        from collectors import check_finite

        monkeypatch.setattr(canaries.Plain, "observe", lambda self: np.array([1e300, 0.0, 0.0]))
        with pytest.raises(NonFiniteError, match="'observation' is not finite"):
            check_finite(collect("Plain"))

    def test_a_copy_that_cannot_be_closed_does_not_keep_the_others_open(self) -> None:
        env = env_of("Unclosable")()
        closed: list[bool] = []
        env.base_env.envs[1].close = lambda: closed.append(True)
        with pytest.raises(RuntimeError, match="the simulator has gone away"):
            env.close()
        assert closed == [True]
        env.close()  # nothing is left to close


class TestForeignEnvironments:
    """Environments of TorchRL that are not ours."""

    def test_the_stored_action_is_the_chosen_one(self) -> None:
        acting = policy()

        def env_fn() -> Any:
            from torchrl.envs import StepCounter, TransformedEnv

            def make() -> Any:
                return GymEnv("canaries:InPlace-v0")

            return TransformedEnv(SerialEnv(2, make), StepCounter())

        collector = make_collector(env_fn, acting, frames_per_batch=20, seed=0)
        acting.module.chosen.clear()
        rollout = next(iter(collector))
        chosen = torch.stack(acting.module.chosen, 1)
        assert torch.equal(rollout["action"], chosen)
        collector.shutdown()


def test_worker_processes_store_what_happened() -> None:
    """All habits at once, global generators included, beside an environment without any."""
    acting = policy(low=-0.1, high=0.7)
    found = collect("Everything", 4, acting, "process")
    expected = collect("Tidy", 4, acting, "process")
    for key in ("action", ("next", "reward"), ("next", "done"), ("next", "episode_reward")):
        assert torch.equal(found[key], expected[key]), key
    entries = [found["observation"][key] for key in sorted_entries(found)]
    assert torch.equal(torch.cat(entries, -1), expected["observation"])


def sorted_entries(rollout: TensorDictBase) -> list[Any]:
    """Keys of the entries in the order in which networks concatenate them."""
    keys = rollout["observation"].keys(True, True)
    return sorted(keys, key=lambda key: key if isinstance(key, tuple) else (key,))
