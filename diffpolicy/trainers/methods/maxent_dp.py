"""MaxEntDP: maximum entropy by Q-weighted noise estimation (arXiv 2502.11612)."""

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
from objectives import MaxEntDPLoss

# The published sizes, where they differ from the small ones.
_PAPER: dict[str, Any] = {
    "num_envs": 1,
    "batch_size": 256,
    "learning_starts": 10_000,
    "denoising_steps": 20,
    "actor_hidden_sizes": (256, 256),
    "critic_hidden_sizes": (256, 256),
    "critic_normalization": "none",
    "lr_critic": 3e-4,
    "num_noises": 500,
    "num_density_noises": 50,
}


@configuration(
    temperature=changed(0.001, valid=above(0), text="by which (normalised) values are divided"),
)
class MaxEntDPConfig(RegressionConfig, DiffusionOptions, FixedTemperatureOptions):
    """MaxEntDP: Q-weighted noise estimation, and values with the entropy."""

    method: ClassVar[str] = "maxent_dp"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = paper_preset(_PAPER)
    num_noises: int = option(
        16, "noises that the target of each noised action is averaged over", valid=at_least(1)
    )
    num_density_noises: int = option(
        4, "noises at each step by which the entropy of the policy is estimated", valid=at_least(1)
    )


def maxent_dp_parts(env: EnvBase, config: MaxEntDPConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    process = DiffusionConfig(schedule=config.noise_schedule)
    return regression_parts(
        MaxEntDPLoss,
        env,
        config,
        process,
        device,
        temperature=config.temperature,
        num_noises=config.num_noises,
        density_noises=config.num_density_noises,
    )


MAXENT_DP = Method(
    MaxEntDPConfig, maxent_dp_parts, "weighted noises at replayed actions, and entropy"
)
