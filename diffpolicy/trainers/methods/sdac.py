"""SDAC: soft diffusion actor-critic (arXiv 2502.00361)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import DiffusionConfig
from diffpolicy.trainers.config.options import above, at_least, changed, configuration, option
from diffpolicy.trainers.config.process import DiffusionOptions
from diffpolicy.trainers.config.temperature import FixedTemperatureOptions
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.regression import (
    RegressionConfig,
    paper_preset,
    regression_parts,
)
from objectives import SDACLoss

# The published sizes, where they differ from the small ones.
_PAPER: dict[str, Any] = {
    "num_envs": 5,
    "batch_size": 256,
    "updates_per_step": 0.2,
    "learning_starts": 30_000,
    "denoising_steps": 20,
    "noise_schedule": "linear",
    "actor_hidden_sizes": (256, 256, 256),
    "critic_hidden_sizes": (256, 256, 256),
    "critic_normalization": "none",
    "lr_critic": 3e-4,
    "policy_delay": 2,
    "num_actions": 32,
    "num_noises": 64,
    "best_of": 32,
}


@configuration(
    best_of=2,
    temperature=changed(0.01, valid=above(0), text="by which (normalised) values are divided"),
)
class SDACConfig(RegressionConfig, DiffusionOptions, FixedTemperatureOptions):
    """SDAC: reweighted score matching at own actions."""

    method: ClassVar[str] = "sdac"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = paper_preset(_PAPER)
    num_noises: int = option(
        16, "noises that the target of each noised action is averaged over", valid=at_least(1)
    )
    action_spread: float = option(
        0.1,
        "standard deviation of noise on the policy's own actions in [-1, 1] units",
        valid=at_least(0),
    )
    num_actions: int = option(
        4, "actions of the policy in each state, of which the best one is noised", valid=at_least(1)
    )


def sdac_parts(env: EnvBase, config: SDACConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    process = DiffusionConfig(schedule=config.noise_schedule)
    return regression_parts(
        SDACLoss,
        env,
        config,
        process,
        device,
        temperature=config.temperature,
        num_noises=config.num_noises,
        num_actions=config.num_actions,
        spread=config.action_spread,
    )


SDAC = Method(SDACConfig, sdac_parts, "weighted noises at the policy's own best actions")
