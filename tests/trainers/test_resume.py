"""A run that is stopped and resumed is the run that was never stopped, to the last bit."""

import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import random_transitions
from pixel_tasks import Mixed
from small_methods import EACH, small_config
from torch import Tensor

from collectors.randomness import load_random_state, random_state
from diffpolicy.policy.demonstrations import save_demonstrations
from diffpolicy.trainers import METHODS, Run, RunConfig, prepare, train
from diffpolicy.trainers.io.signals import StopSignal

# What differs between any two runs: times that MuJoCo takes, and the random state of action spaces,
# which nobody seeds or draws from.
_NOISE = r"data/special/data/bytes|_space/attributes/_np_random"
# On a GPU TorchRL carries on what the first policy wrote, in DiffSAC that of the random steps. The
# others are written anew at each step, before anything reads them.
_NOISE_OF_GPU = _NOISE + r"|carrier/(kernel_mean|kernel_std|log_prob|log_ratio)$"
ANY: dict[str, Any] = {
    "num_envs": 20,
    "actor_hidden_sizes": (16,),
    "critic_hidden_sizes": (16,),
    "eval_every": 1_500,
    "checkpoint_every": 1_000_000,
    "total_frames": 4_000,
    "seed": 3,
}
OF_KIND: dict[str, dict[str, Any]] = {
    "on-policy": {"rollout_steps": 20, "minibatch_size": 100},
    "off-policy": {
        "learning_starts": 400,
        "iteration_frames": 400,
        "updates_per_step": 0.05,
        "batch_size": 16,
        "replay_size": 3_000,
    },
}
# The time limits let episodes end before and after the stop, and be cut in two by it.
HOPPER: dict[str, Any] = {"env": "Hopper-v5", "max_episode_steps": None}
CHEETAH: dict[str, Any] = {"env": "HalfCheetah-v5", "max_episode_steps": 35}
PENDULUM: dict[str, Any] = {"env": "Pendulum-v1", "max_episode_steps": 30}
PIXELS: dict[str, Any] = {"env": Mixed, "max_episode_steps": None, "encoder": "cnn"}
TARGETS = {"critic_normalization": "layer", "delay_critic": True, "replay_storage": "disk"}
# Every method on one task, and variants of some on others.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, HOPPER) for name in METHODS},
    "diffppo-cheetah": ("diffppo", {**CHEETAH, "target_kl": 1e-3}),
    "diffppo-pendulum": ("diffppo", PENDULUM),
    "dime-cheetah": ("dime", CHEETAH),
    "dime-targets-pendulum": ("dime", {**PENDULUM, **TARGETS}),
    "dime-critics-first": ("dime", {**HOPPER, "update_order": "critic_first"}),
    "dime-chunks": ("dime", {**PENDULUM, "action_chunk": 2, "frame_stack": 3}),
    "diffppo-pixels": ("diffppo", {**PIXELS, "action_chunk": 2, "frame_stack": 2}),
}


def case_config(case: str, **changes: Any) -> Any:
    name, options = CASES[case]
    given = {**ANY, **OF_KIND[METHODS[name].kind], **options, **changes}
    return small_config(name, **given)


class StopAt(StopSignal):
    """Ctrl-C once a run has made so many environment steps."""

    def __init__(self, run: Run, frames: int) -> None:
        super().__init__()
        self.run = run
        self.frames = frames

    def requested(self) -> bool:
        return self.run.module.progress.frames >= self.frames


def stopped(config: RunConfig, frames: int) -> Run:
    run = prepare(config)
    assert not train(run, StopAt(run, frames))
    return run


def resumed(config: RunConfig, **changes: Any) -> Run:
    run = prepare(dataclasses.replace(config, resume="last", **changes))
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


def assert_exact(case: str, folder: Path, frames: int, **changes: Any) -> dict[str, Any]:
    straight, broken = folder / "straight", folder / "broken"
    config = case_config(case, **changes)
    assert train(prepare(dataclasses.replace(config, output=str(straight))))
    config = dataclasses.replace(config, output=str(broken))
    first = stopped(config, frames)
    before = content(broken)
    # Chunks of actions that end with an episode are shorter.
    assert before["frames"] == frames or frames < before["frames"] < 2 * frames
    resumed(config)
    assert first.output == broken
    assert_same_runs(straight, broken, _NOISE_OF_GPU if config.gpus else _NOISE)
    after = content(broken)
    assert leaves(before["networks"]) != leaves(after["networks"])
    return after


# As CASES, with fewer steps.
SHORT: dict[str, Any] = {"total_frames": 800, "max_episode_steps": 15, "eval_every": 500}
SHORT_OF_KIND: dict[str, dict[str, Any]] = {
    "on-policy": {"rollout_steps": 10},
    "off-policy": {"learning_starts": 200, "iteration_frames": 200},
}


def short(case: str) -> dict[str, Any]:
    return SHORT | SHORT_OF_KIND[METHODS[CASES[case][0]].kind]


@pytest.mark.parametrize(
    "case", [*EACH, pytest.param("dime-targets-pendulum", marks=pytest.mark.slow)]
)
def test_a_resumed_run_is_exact(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = assert_exact(case, tmp_path, 400, **short(case))
    assert final["frames"] == 800
    assert "warning" not in capsys.readouterr().err


@pytest.mark.slow
def test_resuming_is_exact_with_histories_and_chunks(tmp_path: Path) -> None:
    final = assert_exact("dime-chunks", tmp_path, 300, **short("dime-chunks"))
    assert final["frames"] >= 800


def test_resuming_is_exact_with_demonstrations(tmp_path: Path) -> None:
    data = random_transitions(observation=11, action=3, bound=1.0)
    folder = save_demonstrations(data, tmp_path / "demos")
    # Chains of demonstrations are drawn anew in each update.
    assert_exact("diffsac", tmp_path, 400, **short("diffsac"), demonstrations=str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_of_4000_steps_is_exact(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = assert_exact(case, tmp_path, 2_000)
    assert final["frames"] >= 4_000
    assert "warning" not in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_on_a_gpu_is_exact(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_exact(case, tmp_path, 400, **short(case), gpus=1, deterministic=True)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("method", ["diffppo", "dime"])
def test_a_run_goes_on_where_there_is_a_gpu_or_none(
    method: str, gpus: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = case_config(method, **short(method), output=str(tmp_path), gpus=1 - gpus)
    stopped(config, 400)
    run = resumed(config, gpus=gpus)
    assert run.module.progress.frames == 800
    assert len(run.module.progress.evaluations) == 3
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

    np.random.randn()  # noqa: NPY002 -- the generator then keeps a second number
    state = random_state()
    expected = [*draws(), np.random.randn()]  # noqa: NPY002
    draws()
    load_random_state(state)
    assert [*draws(), np.random.randn()] == expected  # noqa: NPY002
