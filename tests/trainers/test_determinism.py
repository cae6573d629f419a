"""Two runs with the same seed and flags write the same metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffpolicy.trainers import (
    DiffPPOConfig,
    DiffSACConfig,
    DiffWPOConfig,
    DIMEConfig,
    diffppo_module,
    diffsac_module,
    diffwpo_module,
    dime_module,
    prepare,
    train,
)

ANY: dict[str, Any] = {
    "env": "Pendulum-v1",
    "max_episode_steps": 20,
    "num_envs": 2,
    "denoising_steps": 2,
    "eval_episodes": 2,
    "eval_every": 40,
    "logger": ("csv",),
}
ON_POLICY = {**ANY, "rollout_steps": 20, "epochs": 2, "hidden_size": 8, "total_frames": 120}
OFF_POLICY = {
    **ANY,
    "learning_starts": 40,
    "iteration_frames": 20,
    "batch_size": 8,
    "critic_hidden_sizes": (8,),
    "actor_hidden_sizes": (8,),
    "total_frames": 120,
}
METHODS: dict[str, tuple[Any, Callable[..., Any], dict[str, Any]]] = {
    "diffppo": (DiffPPOConfig, diffppo_module, ON_POLICY),
    "diffwpo": (DiffWPOConfig, diffwpo_module, ON_POLICY),
    "dime": (DIMEConfig, dime_module, OFF_POLICY),
    "diffsac": (DiffSACConfig, diffsac_module, OFF_POLICY),
}


def metrics(method: str, output: Path, seed: int) -> bytes:
    config, build, options = METHODS[method]
    run = prepare(config(**options, output=str(output), seed=seed), build)
    assert train(run)
    assert (output / "timing.csv").read_text().startswith("frames,wall_seconds,frames_per_second")
    return (output / "metrics.csv").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_metrics(method: str, tmp_path: Path) -> None:
    first = metrics(method, tmp_path / "first", 3)
    assert len(first.splitlines()) > 3
    assert metrics(method, tmp_path / "second", 3) == first
    assert metrics(method, tmp_path / "other", 4) != first
