"""DIPO: the policy clones actions that the critics improve (arXiv 2305.13122)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import DiffusionConfig
from diffpolicy.trainers.config.options import above, at_least, configuration, option
from diffpolicy.trainers.config.process import DiffusionOptions
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.regression import (
    RegressionConfig,
    paper_preset,
    regression_parts,
)
from objectives import DIPOLoss
from objectives.regression import ImprovedActions

# The published sizes, where they differ from the small ones.
_PAPER: dict[str, Any] = {
    "num_envs": 1,
    "batch_size": 256,
    "learning_starts": 10_000,
    "denoising_steps": 100,
    "actor_hidden_sizes": (256, 256, 256),
    "critic_hidden_sizes": (256, 256),
    "critic_normalization": "none",
    "lr_critic": 3e-4,
    "adam_eps": 1e-5,
    "ascent_steps": 20,
}


@configuration()
class DIPOConfig(RegressionConfig, DiffusionOptions):
    """DIPO: the policy clones actions that climb the critics' value."""

    method: ClassVar[str] = "dipo"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = paper_preset(_PAPER)
    ascent_steps: int = option(
        10, "steps that an action of the buffer climbs in an update", valid=at_least(1)
    )
    ascent_lr: float = option(
        0.03, "learning rate of these steps, in [-1, 1] units of actions", valid=above(0)
    )


def dipo_parts(env: EnvBase, config: DIPOConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    process = DiffusionConfig(schedule=config.noise_schedule)
    parts = regression_parts(
        DIPOLoss,
        env,
        config,
        process,
        device,
        ascent_steps=config.ascent_steps,
        ascent_lr=config.ascent_lr,
    )
    return replace(parts, write_back={ImprovedActions.key: parts.loss.tensor_keys.action})


DIPO = Method(DIPOConfig, dipo_parts, "cloning of replayed actions that the critics improve")
