"""Collection on a Ray cluster: two nodes on this machine, each a set of processes of its own."""

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase

from collectors import (
    OffPolicyStream,
    WorkerError,
    make_collector,
    make_env,
    make_replay_buffer,
)
from collectors.collection import ray_workers
from collectors.collection.rollouts import RolloutReader
from diffpolicy.actors import DenoisingActor, build_ppo_networks

pendulum = partial(make_env, "Pendulum-v1", num_envs=2)
SECONDS = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with one CPU each, and this process connected with it."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    folder = str(Path(__file__).parents[1] / "faulty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", folder, prepend=os.pathsep)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        signal.signal(signal.SIGTERM, handler)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def collect(cluster: Any) -> Iterator[Callable[..., BaseCollector]]:
    """Build collectors with two workers that are shut down after the test."""
    built: list[BaseCollector] = []

    def build(env_fn: Any = pendulum, policy: Any = None, **options: Any) -> BaseCollector:
        settings = {"frames_per_batch": 40, "seed": 0, "backend": "ray", "num_workers": 2}
        built.append(make_collector(env_fn, policy, **{**settings, **options}))
        return built[-1]

    yield build
    for collector in built:
        collector.shutdown()


def small_actor() -> DenoisingActor:
    env = pendulum()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actor = build_ppo_networks(env, denoising_steps=2).actor
    env.close()
    return actor


def nodes_of(collector: BaseCollector) -> set[str]:
    import ray

    actors = collector._group.collector.remote_collectors
    ids = [
        actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
        for actor in actors
    ]
    return set(ray.get(ids))


@pytest.mark.slow
def test_the_same_rollouts_as_with_processes_from_two_nodes(
    collect: Callable[..., BaseCollector], pendulum: Callable[..., EnvBase]
) -> None:
    """Two nodes act with the weights of the learner, also after they have changed."""
    results: list[list[TensorDictBase]] = []
    for backend in ("ray", "process"):
        actor = small_actor()
        collector = collect(pendulum, policy=actor, backend=backend)
        reader = RolloutReader(collector)
        rollouts = [reader.read().clone()]
        with torch.no_grad():
            for parameter in actor.parameters():
                parameter.mul_(0.5)
        rollouts.append(reader.read().clone())
        with torch.no_grad():
            for parameter in actor.parameters():
                parameter.fill_(float("nan"))
        rollouts.append(reader.read().clone())
        if backend == "ray":
            assert len(nodes_of(collector)) == 2
        results.append(rollouts)
    for with_ray, with_processes in zip(*results, strict=True):
        assert with_ray.shape == (4, 10)
        assert with_ray.names == [None, "time"]
        assert with_ray["latents"].shape == (4, 10, 3, 1)
        for key in ("observation", "latents", "step_count", ("next", "reward")):
            torch.testing.assert_close(with_ray[key], with_processes[key], equal_nan=True)
    first, _, broken = results[0]
    assert len(first["observation"][:, 0].unique(dim=0)) == 4
    assert len(first["latents"][:, :, 0].unique()) == 40
    assert first["action"].isfinite().all()
    assert broken["action"].isnan().all()


@pytest.mark.slow
def test_random_frames_and_buffers_of_the_policy(
    collect: Callable[..., BaseCollector], pendulum: Callable[..., EnvBase]
) -> None:
    policy = TensorDictModule(Constant(), ["observation"], ["action"])
    collector = collect(pendulum, policy=policy, frames_per_batch=4, random_frames=8)
    buffer = make_replay_buffer(100, batch_size=8, seed=0)
    stream = OffPolicyStream(collector, buffer, frames=8, updates_per_step=0.25)
    rows = stream.warm_up(12)
    assert len(rows["action"][:8].unique()) == 8
    assert (rows["action"][8:] == 0.5).all()
    policy.module.value.fill_(-0.5)
    assert len(list(stream)) == 2
    assert (buffer[12:]["action"] == -0.5).all()
    assert buffer["step_count"][-4:].tolist() == [[4]] * 4


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(0.5))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.value.expand(*observation.shape[:-1], 1).clone()


@pytest.mark.slow
def test_a_fault_is_survived_once_and_then_reported(
    collect: Callable[..., BaseCollector], faulty_envs: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    collector = collect(
        partial(make_env, f"{faulty_envs}:Faulty-v0", first=4, flags=str(tmp_path)),
        frames_per_batch=12,
        restarts=1,
        on_restart=lines.append,
    )
    reader = RolloutReader(collector)
    rollout = reader.read()
    assert rollout["step_count"][:, -1, 0].tolist() == [5, 5]
    assert len(lines) == 1
    assert "raised ArithmeticError: the simulator broke at step 4; the workers" in lines[0]
    began = time.monotonic()
    with pytest.raises(WorkerError) as raised:
        reader.read()
    assert time.monotonic() - began < SECONDS
    assert "of 2 raised ArithmeticError: the simulator broke at step 8\n" in str(raised.value)
    assert 'faulty_envs.py", line' in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["exit", "kill"])
def test_a_worker_that_dies(
    collect: Callable[..., BaseCollector], faulty_envs: str, fault: str
) -> None:
    collector = collect(partial(make_env, f"{faulty_envs}:Faulty-v0", num_envs=2, fault=fault))
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"^worker \d of 2 died"):
        next(iter(collector))
    assert time.monotonic() - began < SECONDS


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_waits(collect: Callable[..., BaseCollector]) -> None:
    import ray

    policy = TensorDictModule(nn.Linear(3, 1), ["observation"], ["action"])
    collector = collect(policy=policy)
    next(iter(collector))
    actors = collector._group.collector.remote_collectors
    pid = ray.get(actors[1].__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"^worker 2 of 2 died"):
        collector.update_policy_weights_()
    assert time.monotonic() - began < SECONDS


@pytest.mark.slow
def test_a_cluster_without_room(
    collect: Callable[..., BaseCollector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "_PLACEMENT_TIMEOUT", 1.0)
    message = r"no CPU for each of 3 workers: 2 of 2 are free after 1 seconds"
    with pytest.raises(WorkerError, match=message):
        collect(num_workers=3, frames_per_batch=60)
    collect()  # and nothing of it stays reserved


@pytest.mark.slow
def test_an_environment_that_cannot_be_built_there(
    collect: Callable[..., BaseCollector], faulty_envs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDABLE_IN", str(os.getpid()))
    with pytest.raises(WorkerError, match="the workers could not be started") as raised:
        collect(partial(make_env, f"{faulty_envs}:Unbuildable-v0"), frames_per_batch=2)
    assert "BUILDABLE_IN" in str(raised.value)  # which the cluster's processes do not have
    collect()


@pytest.mark.slow
def test_a_node_that_dies(collect: Callable[..., BaseCollector], cluster: Any) -> None:
    node = cluster.add_node(num_cpus=2)
    collector = collect(num_workers=3, frames_per_batch=60)
    reader = RolloutReader(collector)
    assert reader.read().shape == (6, 10)
    cluster.remove_node(node, allow_graceful=False)
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"^worker \d of 3 died"):
        read_until(reader, began + SECONDS)


def read_until(reader: RolloutReader, deadline: float) -> None:
    """Read rollouts; the workers of a node that has died go on for a moment."""
    while time.monotonic() < deadline:
        reader.read()


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package ray.*pip install 'diffpolicy\[ray\]'"):
        make_collector(pendulum, None, frames_per_batch=2, seed=0, backend="ray", num_workers=1)
