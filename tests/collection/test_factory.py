import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase, ExplorationType

import collectors
from collectors import make_collector, make_env
from collectors.collection import factory
from collectors.collection.factory import Backend
from diffpolicy.actors import build_ppo_networks

MakePolicy = Callable[..., TensorDictModule]
MakeEnv = Callable[..., EnvBase]
pendulum = partial(make_env, "Pendulum-v1", num_envs=2)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Make ``torch.compile`` generate no code; what it has been called with."""
    modules: list[nn.Module] = []

    def compile_eagerly(module: nn.Module) -> nn.Module:
        modules.append(module)
        return original(module, backend="eager")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    return modules


def rollouts(collector: BaseCollector, count: int) -> list[TensorDictBase]:
    iterator = iter(collector)
    result = [next(iterator).clone() for _ in range(count)]
    collector.shutdown()
    return result


def same(first: TensorDictBase, second: TensorDictBase) -> bool:
    keys = ("action", "observation", ("next", "observation"), ("next", "reward"))
    return all(torch.equal(first[key], second[key]) for key in keys)


class TestOneProcess:
    def test_rollouts_are_environments_by_time(
        self, pendulum: MakeEnv, make_policy: MakePolicy
    ) -> None:
        policy = make_policy(3, 1, 2.0)
        collector = make_collector(pendulum, policy, frames_per_batch=20, total_frames=40, seed=0)
        batches = list(collector)
        assert [batch.shape for batch in batches] == [(2, 10), (2, 10)]
        assert batches[0].names == [None, "time"]
        assert batches[1]["step_count"][:, 0, 0].tolist() == [10, 10]
        collector.shutdown()

    def test_the_seed_fixes_simulators_and_noise(
        self, pendulum: MakeEnv, make_policy: MakePolicy
    ) -> None:
        results = []
        for seed, global_seed in [(1, 0), (1, 99), (2, 0)]:
            torch.manual_seed(global_seed)
            policy = make_policy(3, 1, 2.0)
            collector = make_collector(pendulum, policy, frames_per_batch=20, seed=seed)
            results.append(rollouts(collector, 2))
        assert same(results[0][0], results[1][0])
        assert same(results[0][1], results[1][1])
        assert not torch.equal(results[0][0]["observation"], results[2][0]["observation"])
        assert not torch.equal(results[0][0]["action"], results[2][0]["action"])

    def test_noise_goes_on_from_rollout_to_rollout(
        self, pendulum: MakeEnv, make_policy: MakePolicy
    ) -> None:
        policy = make_policy(3, 1, 1e9)
        nn.init.zeros_(policy.module.linear.weight)
        collector = make_collector(pendulum, policy, frames_per_batch=20, seed=0)
        first, second = rollouts(collector, 2)
        assert len(torch.cat([first["action"], second["action"]]).unique()) == 40

    def test_collecting_leaves_the_global_random_state_alone(
        self, pendulum: MakeEnv, make_policy: MakePolicy
    ) -> None:
        collector = make_collector(pendulum, make_policy(3, 1, 2.0), frames_per_batch=20, seed=0)
        torch.manual_seed(7)
        before = torch.get_rng_state()
        rollouts(collector, 2)
        assert torch.equal(before, torch.get_rng_state())

    def test_changes_to_the_policy_are_seen_at_once(
        self, pendulum: MakeEnv, make_policy: MakePolicy
    ) -> None:
        policy = make_policy(3, 1, 2.0)
        collector = make_collector(pendulum, policy, frames_per_batch=20, seed=0)
        iterator = iter(collector)
        assert next(iterator)["action"].min() < 2.0
        with torch.no_grad():
            policy.module.linear.bias.fill_(100.0)
        assert (next(iterator)["action"] == 2.0).all()
        collector.shutdown()

    def test_deterministic_exploration_reaches_the_policy(
        self, pendulum: MakeEnv, make_policy: MakePolicy
    ) -> None:
        policy = make_policy(3, 1, 2.0)
        collector = make_collector(
            pendulum,
            policy,
            frames_per_batch=20,
            seed=0,
            exploration_type=ExplorationType.DETERMINISTIC,
        )
        (rollout,) = rollouts(collector, 1)
        with torch.no_grad():
            expected = policy.module.linear(rollout["observation"]).clamp(-2, 2)
        torch.testing.assert_close(rollout["action"], expected)

    def test_a_compiled_policy_is_the_policy_as_it_is_now(
        self, pendulum: MakeEnv, make_policy: MakePolicy, compiled: list[nn.Module]
    ) -> None:
        both = []
        for compile_policy in (False, True):
            policy = make_policy(3, 1, 2.0)
            collector = make_collector(
                pendulum, policy, frames_per_batch=20, seed=0, compile_policy=compile_policy
            )
            iterator = iter(collector)
            both.append([next(iterator).clone()])
            with torch.no_grad():
                policy.module.linear.bias.fill_(100.0)
            both[-1].append(next(iterator).clone())
            collector.shutdown()
        assert compiled == [policy]
        for eager, ours in zip(*both, strict=True):
            assert same(eager, ours)
        assert (both[1][1]["action"] == 2.0).all()

    @pytest.mark.parametrize(("backend", "graphs"), [("process", True), ("ray", False)])
    def test_cuda_graphs_are_for_workers_that_act_on_a_gpu(
        self,
        backend: Backend,
        graphs: bool,
        compiled: list[nn.Module],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        policy = TensorDictModule(torch.tanh, in_keys=["observation"], out_keys=["action"])
        built = {}

        def record(start: partial, acting: nn.Module, **options: object) -> None:
            built.update(acting=acting, options=start.args[-1])

        monkeypatch.setattr(factory, "WorkerCollector", record)
        monkeypatch.setattr(factory, "check_ray", lambda: None)
        make_collector(
            pendulum,
            policy,
            frames_per_batch=20,
            seed=0,
            backend=backend,
            num_workers=2,
            device="cuda:0",
            compile_policy=True,
        )
        assert ("compile_policy" in built["options"]) == graphs
        assert compiled == ([] if graphs else [policy])
        assert (built["acting"] is policy) == graphs

    def test_rollouts_carry_no_gradient(self, pendulum: MakeEnv, make_policy: MakePolicy) -> None:
        collector = make_collector(pendulum, make_policy(3, 1, 2.0), frames_per_batch=20, seed=0)
        (rollout,) = rollouts(collector, 1)
        assert not any(value.requires_grad for value in rollout.values(True, True))


class TestRandomFrames:
    """A policy that always acts with 0.5 shows which actions are not its own."""

    low, high = -1.0, 3.0

    def collect(self, seed: int = 0, num_workers: int = 0, **options: int) -> TensorDictBase:
        constant = TensorDictModule(
            lambda observation: (torch.full_like(observation[..., :1], 0.5), observation + 1),
            in_keys=["observation"],
            out_keys=["action", "note"],
        )
        # a worker does not know the environments registered here
        bounds = {} if num_workers else {"low": self.low, "high": self.high}
        name = "Pendulum-v1" if num_workers else "Counting-v0"
        env_fn = partial(make_env, name, num_envs=4, **bounds)
        count = options.pop("count", 5)
        collector = make_collector(
            env_fn,
            constant,
            seed=seed,
            backend="process" if num_workers else "local",
            num_workers=num_workers,
            **options,
        )
        before = torch.get_rng_state()
        result = torch.stack(rollouts(collector, count))
        assert torch.equal(before, torch.get_rng_state())
        return result

    @pytest.mark.parametrize(("frames_per_batch", "random_frames"), [(4, 12), (8, 24), (4, 0)])
    def test_the_policy_acts_after_them(self, frames_per_batch: int, random_frames: int) -> None:
        result = self.collect(frames_per_batch=frames_per_batch, random_frames=random_frames)
        batches = random_frames // frames_per_batch
        assert (result["action"][:batches] != 0.5).all()
        assert (result["action"][batches:] == 0.5).all()
        assert (result["note"][:batches] == 0.0).all()
        assert torch.equal(result["note"][batches:], result["observation"][batches:] + 1)
        # the simulator has seen the action that is recorded
        assert torch.equal(result["next", "observation"][..., 1:], result["action"])

    def test_they_are_uniform_within_the_bounds(self) -> None:
        actions = self.collect(frames_per_batch=4000, random_frames=4000, count=1)["action"]
        below = (actions.flatten().double().sort().values - self.low) / (self.high - self.low)
        # Kolmogorov-Smirnov: the distance exceeds 1.95 / sqrt(n) once in a thousand samples
        assert (below - torch.linspace(0, 1, 4000)).abs().max() < 1.95 / 4000**0.5

    def test_the_seed_fixes_them(self) -> None:
        options = {"frames_per_batch": 40, "random_frames": 40, "count": 1}
        first = self.collect(seed=0, **options)["action"]
        torch.manual_seed(99)
        assert torch.equal(first, self.collect(seed=0, **options)["action"])
        assert not torch.equal(first, self.collect(seed=1, **options)["action"])
        assert len(first.unique()) == 40

    @pytest.mark.slow
    def test_workers_share_them(self) -> None:
        result = self.collect(num_workers=2, frames_per_batch=8, random_frames=24)
        assert result["action"].shape == (5, 8, 1, 1)
        assert len(result["action"][:3].unique()) == 24
        assert (result["action"][3:] == 0.5).all()


class TestWorkers:
    def collect(self, seed: int, count: int = 1) -> list[TensorDictBase]:
        env = pendulum()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            actor = build_ppo_networks(env, denoising_steps=2).actor
        env.close()
        collector = make_collector(
            pendulum, actor, frames_per_batch=40, seed=seed, backend="process", num_workers=2
        )
        assert actor.process.denoising_steps == 2
        try:
            iterator = iter(collector)
            result = [next(iterator).clone() for _ in range(count)]
            with torch.no_grad():
                for parameter in actor.parameters():
                    parameter.fill_(float("nan"))
            collector.update_policy_weights_()
            result.append(next(iterator).clone())
        finally:
            collector.shutdown()
        return result

    def test_two_workers_are_one_batch_of_distinct_environments(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        first, second, broken = self.collect(seed=0, count=2)
        assert first.shape == second.shape == (4, 10)
        assert first.names == [None, "time"]
        assert first["latents"].shape == (4, 10, 3, 1)
        assert second["step_count"][:, 0, 0].tolist() == [10] * 4
        # neither the simulators nor the noise repeat
        assert len(first["observation"][:, 0].unique(dim=0)) == 4
        assert len(first["latents"][:, :, 0].unique()) == 40
        # an update of the learner's parameters reaches the workers
        assert broken["action"].isnan().all()
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    def test_the_seed_fixes_the_rollouts(self) -> None:
        first, again, other = (self.collect(seed)[0] for seed in (4, 4, 5))
        assert same(first, again)
        assert not torch.equal(first["observation"], other["observation"])
        assert not torch.equal(first["latents"], other["latents"])


SCRIPT = """
import sys
from functools import partial
import gymnasium as gym
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from tensordict.nn import TensorDictModule
from collectors import make_collector, make_env
from collectors.collection import factory
from collectors.collection.factory import Backend

if __name__ == "__main__":
    gym.register("OnlyInTheParent-v0", entry_point=PendulumEnv)
    policy = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["action"])
    env_fn = partial(make_env, sys.argv[1])
    options = {"frames_per_batch": 2, "seed": 0, "backend": "process", "num_workers": 2}
    collector = make_collector(env_fn, policy, **options)
    next(iter(collector))
    raise ArithmeticError("the training failed")
"""


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("Pendulum-v1", "ArithmeticError: the training failed"),
        pytest.param(
            "OnlyInTheParent-v0",
            "the workers could not be started: ArgumentError: name='OnlyInTheParent-v0' is not a",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_workers_do_not_outlive_a_script_that_fails(name: str, error: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, str(script), name],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(collectors.__file__).parents[1])},
    )
    assert result.returncode == 1
    assert error in result.stderr
    if name == "OnlyInTheParent-v0":
        assert "An id of your own is named 'module:OnlyInTheParent-v0'" in result.stderr


KEPT = """
import builtins, gc
from functools import partial
from tensordict.nn import TensorDictModule
from torchrl.weight_update import SharedMemWeightSyncScheme
from collectors import make_collector, make_env
from collectors.collection import factory
from collectors.collection.factory import Backend

if __name__ == "__main__":
    gc.disable()
    policy = TensorDictModule(lambda o: 0 * o[:, :1], in_keys=["observation"], out_keys=["action"])
    env_fn = partial(make_env, "Pendulum-v1")
    options = {"frames_per_batch": 2, "seed": 0, "backend": "process", "num_workers": 2}
    collector = make_collector(env_fn, policy, **options)
    next(iter(collector))
    collector.shutdown()
    # nothing takes these away before the very end
    for scheme in gc.get_objects():
        if isinstance(scheme, SharedMemWeightSyncScheme):
            builtins.kept = scheme.itself = scheme
    del collector, scheme
"""


@pytest.mark.slow
def test_what_is_left_of_a_collector_does_not_keep_the_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KEPT)
    environment = os.environ | {"PYTHONPATH": str(Path(collectors.__file__).parents[1])}
    subprocess.run([sys.executable, str(script)], check=True, timeout=60, env=environment)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"frames_per_batch": 0}, "frames_per_batch must be at least 1, got 0"),
            ({"frames_per_batch": 7}, "multiple of the number of environments, 2 .*got 7; try 8"),
            ({"frames_per_batch": 1}, "got 1; try 2"),
            ({"total_frames": 0}, "total_frames must be -1 .*got 0; try 20"),
            ({"total_frames": 30}, "multiple of frames_per_batch=20, got 30; try 40"),
            ({"random_frames": -20}, "random_frames must be 0 or a multiple .*got -20; try 0"),
            ({"random_frames": 30}, "frames_per_batch=20, got 30; try 40"),
            ({"seed": -3}, "seed=-3 must be a non-negative integer"),
        ],
    )
    def test_counts(self, arguments: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_collector(pendulum, None, **({"frames_per_batch": 20, "seed": 0} | arguments))

    def test_a_policy_on_another_device(self) -> None:
        policy = TensorDictModule(
            nn.Linear(3, 1, device="meta"), in_keys=["observation"], out_keys=["action"]
        )
        with pytest.raises(ValueError, match=r"module\.weight is on meta, but device=cpu"):
            make_collector(pendulum, policy, frames_per_batch=20, seed=0)

    def test_an_environment_without_a_batch_dimension(self) -> None:
        from torchrl.envs import GymEnv

        with pytest.raises(ValueError, match=r"one batch dimension, got the batch size \(\)"):
            make_collector(lambda: GymEnv("Pendulum-v1"), None, frames_per_batch=20, seed=0)
