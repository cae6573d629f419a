"""Runs on one GPU, with each method and each way of collecting."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from small_methods import DIFFUSION, OFF_POLICY, small_config

import diffpolicy.trainers.run.launch as launch
from diffpolicy.trainers import (
    METHODS,
    RLModule,
    Run,
    prepare,
    train,
)

pytestmark = pytest.mark.gpu

# Episodes of 15 steps: some end within a rollout, and some environments are reset alone.
COMMON: dict[str, Any] = {
    "gpus": 1,
    "env": "Hopper-v5",
    "max_episode_steps": 15,
    "num_envs": 8,
    "eval_every": 240,
    "total_frames": 480,
}
OF_KIND: dict[str, dict[str, Any]] = {
    "on-policy": {"rollout_steps": 30},
    "off-policy": {"learning_starts": 80, "iteration_frames": 80, "updates_per_step": 0.1},
}


def prepared(method: str, output: Path, **options: Any) -> Run:
    given = {**COMMON, **OF_KIND[METHODS[method].kind], "output": str(output), **options}
    return prepare(small_config(method, **given))


def finished(method: str, output: Path, **options: Any) -> Run:
    run = prepared(method, output, **options)
    before = torch.cuda.get_rng_state()
    assert train(run)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    module = run.module
    assert module.progress.frames == 480
    assert len(module.progress.evaluations) == 3
    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_on_a_gpu(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = prepared(method, tmp_path).module.cpu().state_dict()
    places = set()

    def end_iteration(module: RLModule, metrics: dict[str, float]) -> None:
        places.update(parameter.device.type for parameter in module.parameters())
        original(module, metrics)

    original = RLModule.end_iteration
    monkeypatch.setattr(RLModule, "end_iteration", end_iteration)
    parameters = dict(finished(method, tmp_path).module.named_parameters())
    assert places == {"cuda"}
    moved = [name for name, value in parameters.items() if not value.equal(untrained[name])]
    assert len(moved) > len(parameters) / 2


@pytest.mark.parametrize("method", DIFFUSION)
def test_a_compiled_run_on_a_gpu(method: str, tmp_path: Path) -> None:
    finished(method, tmp_path, compile=True)


@pytest.mark.parametrize(("method", "compiled"), [("diffppo", False), ("dime", True)])
def test_workers_collect_for_a_gpu(method: str, compiled: bool, tmp_path: Path) -> None:
    finished(method, tmp_path, collector="process", num_workers=2, compile=compiled)


@pytest.mark.parametrize("method", METHODS)
def test_exchanges_between_ranks_go_through_nccl(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One rank that exchanges with itself: NCCL refuses whatever is not on the GPU.
    strategy = DDPStrategy(broadcast_buffers=False)
    monkeypatch.setattr(launch, "_strategy", lambda config: strategy)
    options = {"policy_delay": 1} if method in OFF_POLICY else {}
    try:
        finished(method, tmp_path, **options)
        assert dist.get_backend() == "nccl"
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("method", DIFFUSION)
def test_the_same_seed_repeats_a_run_on_a_gpu(method: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        finished(method, tmp_path / name, deterministic=True)
    one, other = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("one", "other"))
    assert one == other
