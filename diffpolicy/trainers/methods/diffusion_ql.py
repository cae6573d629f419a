"""Diffusion Q-learning: cloning, and values through the whole chain (arXiv 2208.06193)."""

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
from objectives import DiffusionQLLoss

# The published sizes, where they differ from the small ones.
_PAPER: dict[str, Any] = {
    "num_envs": 1,
    "batch_size": 256,
    "actor_hidden_sizes": (256, 256, 256),
    "critic_hidden_sizes": (256, 256, 256),
    "critic_normalization": "none",
    "lr_critic": 3e-4,
}


@configuration(noise_schedule="vp")
class DiffusionQLConfig(RegressionConfig, DiffusionOptions):
    """DiffusionQL: the policy clones the data, and is drawn to what the critics value."""

    method: ClassVar[str] = "diffusion_ql"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = paper_preset(_PAPER)
    eta: float = option(
        1.0,
        "weight of the values in the loss of the policy, beside that of the cloning, which is 1",
        valid=at_least(0),
    )
    max_grad_norm: float = option(
        9.0, "limit of the gradient norm of the policy, and of that of the critics", valid=above(0)
    )


def diffusion_ql_parts(
    env: EnvBase, config: DiffusionQLConfig, device: torch.device
) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    process = DiffusionConfig(schedule=config.noise_schedule)
    parts = regression_parts(DiffusionQLLoss, env, config, process, device, eta=config.eta)
    limited = {
        name: replace(optimizer, norm_limit=config.max_grad_norm)
        for name, optimizer in parts.optimizers.items()
    }
    return replace(parts, optimizers=limited)


DIFFUSION_QL = Method(
    DiffusionQLConfig, diffusion_ql_parts, "cloning, and values through the whole chain; offline"
)
