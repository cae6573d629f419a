"""What a run does before its first step, and what acting writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_methods import DIFFUSION, OFF_POLICY, small_config, small_words

from diffpolicy.trainers import METHODS

EPISODES, LENGTH = 2, 5
# What is heavy, and has nothing to do with training: it may come later, where it is used.
NOT_NEEDED = (
    "pandas",
    "h5py",
    "matplotlib.backends.backend_agg",
    "onnx",
    "onnxruntime",
    "optuna",
    "seaborn",
    "torchvision",
    "torch._inductor.compile_fx",
    "wandb",
)
ENVIRONMENT = f"""
import sys
from pathlib import Path

from gymnasium.envs.classic_control.pendulum import PendulumEnv


class Watching(PendulumEnv):
    steps = 0

    def step(self, action):
        Watching.steps += 1
        # The first step after the evaluation of the untrained policy.
        if Watching.steps == {EPISODES * LENGTH} + 1:
            Path("loaded.txt").write_text("\\n".join(sys.modules))
        return super().step(action)
"""


def test_the_first_step_waits_for_nothing_that_training_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "watching.py").write_text(ENVIRONMENT)
    options = {"env": "watching:Watching", "max_episode_steps": LENGTH, "eval_episodes": EPISODES}
    words = small_words("diffppo", **options, logger=("csv", "tensorboard"))
    command = [sys.executable, "-m", "diffpolicy", "train", "diffppo", *words, "--output", "run"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=_environment())
    loaded = set((tmp_path / "loaded.txt").read_text().splitlines())
    assert {"diffpolicy.trainers", "lightning"} <= loaded
    assert loaded.isdisjoint(NOT_NEEDED)


@pytest.mark.parametrize("name", [name for name in DIFFUSION if name in OFF_POLICY])
def test_acting_writes_what_is_stored_and_no_more(name: str) -> None:
    module = METHODS[name].module(small_config(name), torch.device("cpu"))
    try:
        assert set(module.actor.out_keys) <= set(module.parts.keys)
        warm_up = module.parts.warm_up
        assert warm_up is None or set(warm_up.out_keys) == set(module.actor.out_keys)
    finally:
        module.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}
