"""A run that is stopped and resumed is the run that was never stopped, to the last bit."""

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffpolicy.trainers import (
    DiffPPOConfig,
    DiffSACConfig,
    DiffWPOConfig,
    DIMEConfig,
    RLModule,
    Run,
    RunConfig,
    diffppo_module,
    diffsac_module,
    diffwpo_module,
    dime_module,
    prepare,
    train,
)
from diffpolicy.trainers.io.random_state import load_random_state, random_state
from diffpolicy.trainers.run.scope import StopSignal

# What differs between any two runs: times that MuJoCo takes, and the random state of action spaces,
# which nobody seeds or draws from.
_NOISE = r"data/special/data/bytes|_space/attributes/_np_random"
# On a GPU TorchRL carries on what the first policy wrote, in DiffSAC that of the random steps. The
# others are written anew at each step, before anything reads them.
_NOISE_OF_GPU = _NOISE + r"|carrier/(kernel_mean|kernel_std|log_prob|log_ratio)$"
Builder = Callable[[Any, torch.device], RLModule]

ANY: dict[str, Any] = {
    "num_envs": 20,
    "denoising_steps": 2,
    "eval_episodes": 2,
    "eval_every": 1_500,
    "checkpoint_every": 1_000_000,
    "total_frames": 4_000,
    "seed": 3,
    "logger": ("csv",),
}
ON_POLICY = {**ANY, "rollout_steps": 20, "epochs": 2, "minibatch_size": 100, "hidden_size": 16}
OFF_POLICY = {
    **ANY,
    "learning_starts": 400,
    "iteration_frames": 400,
    "updates_per_step": 0.05,
    "batch_size": 16,
    "critic_hidden_sizes": (16,),
    "actor_hidden_sizes": (16,),
    "replay_size": 3_000,
}
# The time limits let episodes end before and after the stop, and be cut in two by it.
METHODS: dict[str, tuple[type[RunConfig], Builder, dict[str, Any]]] = {
    "diffppo": (
        DiffPPOConfig,
        diffppo_module,
        {**ON_POLICY, "env": "HalfCheetah-v5", "max_episode_steps": 35, "target_kl": 1e-3},
    ),
    "diffppo-pendulum": (
        DiffPPOConfig,
        diffppo_module,
        {**ON_POLICY, "env": "Pendulum-v1", "max_episode_steps": 30},
    ),
    "diffwpo": (
        DiffWPOConfig,
        diffwpo_module,
        {**ON_POLICY, "env": "Hopper-v5", "critic_hidden_size": 16},
    ),
    "dime": (
        DIMEConfig,
        dime_module,
        {**OFF_POLICY, "env": "HalfCheetah-v5", "max_episode_steps": 35},
    ),
    "dime-targets-pendulum": (
        DIMEConfig,
        dime_module,
        {
            **OFF_POLICY,
            "env": "Pendulum-v1",
            "max_episode_steps": 30,
            "critic_normalization": "layer",
            "delay_critic": True,
            "replay_storage": "disk",
        },
    ),
    "diffsac": (DiffSACConfig, diffsac_module, {**OFF_POLICY, "env": "Hopper-v5"}),
}


class StopAt(StopSignal):
    """Ctrl-C once a run has made so many environment steps."""

    def __init__(self, run: Run, frames: int) -> None:
        super().__init__()
        self.run = run
        self.frames = frames

    def requested(self) -> bool:
        return self.run.module.frames >= self.frames


def stopped(config: RunConfig, build: Builder, frames: int) -> Run:
    run = prepare(config, build)
    assert not train(run, StopAt(run, frames))
    return run


def resumed(config: RunConfig, build: Builder, **changes: Any) -> Run:
    run = prepare(dataclasses.replace(config, resume="last", **changes), build)
    assert train(run)
    return run


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and text in nested data by its path; tensors as bytes, which compares NaN."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif isinstance(value, Tensor):
        plain = value.as_subclass(Tensor).contiguous()
        return {path: (str(plain.dtype), tuple(plain.shape), plain.numpy().tobytes())}
    else:
        return {path: value}
    return {k: v for name, item in items for k, v in leaves(item, f"{path}/{name}").items()}


def content(output: Path) -> dict[str, Any]:
    """All that the newest checkpoint of a run holds, but for time and names of files."""
    folder = output / "checkpoints"
    checkpoint = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True)
    state = checkpoint["diffpolicy"]
    replay = state["replay"] and [
        torch.load(path, weights_only=True) for path in sorted((folder / state["replay"]).iterdir())
    ]
    for rank in state["ranks"]:
        collector = rank["stream"]["collector"]
        collector["carrier"] = {".".join(key): value for key, value in collector["carrier"]}
    return {
        "networks": checkpoint["state_dict"],
        "optimizers": checkpoint["optimizer_states"],
        "frames": state["frames"],
        "gradient_steps": state["gradient_steps"],
        "evaluations": state["evaluations"],
        "ranks": state["ranks"],
        "replay": replay,
    }


def assert_same_runs(one: Path, other: Path, noise: str = _NOISE) -> None:
    ours, theirs = leaves(content(one)), leaves(content(other))
    different = {name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name)}
    assert {name for name in different if not re.search(noise, name)} == set()
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


def assert_exact(method: str, folder: Path, frames: int, **changes: Any) -> dict[str, Any]:
    config_class, build, options = METHODS[method]
    straight, broken = folder / "straight", folder / "broken"
    config = config_class(**{**options, **changes})
    assert train(prepare(dataclasses.replace(config, output=str(straight)), build))
    config = dataclasses.replace(config, output=str(broken))
    first = stopped(config, build, frames)
    before = content(broken)
    assert before["frames"] == frames
    resumed(config, build)
    assert first.output == broken
    assert_same_runs(straight, broken, _NOISE_OF_GPU if config.gpus else _NOISE)
    after = content(broken)
    assert leaves(before["networks"]) != leaves(after["networks"])
    return after


# As METHODS, with fewer steps.
SHORT: dict[str, Any] = {"total_frames": 800, "max_episode_steps": 15, "eval_every": 500}
SHORT_OF: dict[type[RunConfig], dict[str, Any]] = {
    DiffPPOConfig: {"rollout_steps": 10},
    DiffWPOConfig: {"rollout_steps": 10},
    DIMEConfig: {"learning_starts": 200, "iteration_frames": 200},
    DiffSACConfig: {"learning_starts": 200, "iteration_frames": 200},
}


@pytest.mark.parametrize("method", ["diffppo", "diffwpo", "dime-targets-pendulum", "diffsac"])
def test_a_resumed_run_is_exact(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = SHORT | SHORT_OF[METHODS[method][0]]
    final = assert_exact(method, tmp_path, 400, **short)
    assert final["frames"] == 800
    assert "warning" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_of_4000_steps_is_exact(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = assert_exact(method, tmp_path, 2_000)
    assert final["frames"] == 4_000
    assert "warning" not in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_on_a_gpu_is_exact(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = SHORT | SHORT_OF[METHODS[method][0]]
    assert_exact(method, tmp_path, 400, **short, gpus=1, deterministic=True)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("method", ["diffppo", "dime"])
def test_a_run_goes_on_where_there_is_a_gpu_or_none(
    method: str, gpus: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_class, build, options = METHODS[method]
    short = SHORT | SHORT_OF[config_class]
    config = config_class(**{**options, **short, "output": str(tmp_path), "gpus": 1 - gpus})
    stopped(config, build, 400)
    run = resumed(config, build, gpus=gpus)
    assert run.module.frames == 800
    assert len(run.module.evaluations) == 3
    assert "it changes between CPU and GPU" in capsys.readouterr().err


def test_a_short_resumed_run_of_two_ranks_is_exact(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = {"cpu_ranks": 2, "num_envs": 5, "learning_starts": 50, "iteration_frames": 100}
    final = assert_exact("dime", tmp_path, 300, **SHORT | small | {"total_frames": 500})
    assert len(final["replay"]) == len(final["ranks"]) == 2
    assert "warning" not in capfd.readouterr().err


TWO_RANKS: dict[str, Any] = {"cpu_ranks": 2, "num_envs": 10, "eval_every": 100_000}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("diffppo", {**TWO_RANKS, "minibatch_size": 50}),
        ("diffsac", {**TWO_RANKS, "learning_starts": 200, "iteration_frames": 200}),
    ],
)
def test_a_resumed_run_of_two_ranks_is_exact(
    method: str, options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    final = assert_exact(method, tmp_path, 2_000, **options)
    assert final["frames"] == 4_000
    first, second = final["ranks"]
    assert leaves(first["stream"]["collector"]["carrier"]) != leaves(
        second["stream"]["collector"]["carrier"]
    )
    assert "warning" not in capfd.readouterr().err


def test_random_states_of_torch_numpy_and_python_come_back() -> None:
    def draws() -> list[float]:
        return [float(torch.rand(())), np.random.rand(), random.random()]  # noqa: NPY002

    device = torch.device("cpu")
    np.random.randn()  # noqa: NPY002 -- the generator then keeps a second number
    state = random_state(device)
    expected = [*draws(), np.random.randn()]  # noqa: NPY002
    draws()
    load_random_state(state, device)
    assert [*draws(), np.random.randn()] == expected  # noqa: NPY002
