"""QVPO: Q-weighted variational policy optimisation (arXiv 2405.16173)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import DiffusionConfig
from diffpolicy.trainers.config.options import (
    at_least,
    configuration,
    option,
)
from diffpolicy.trainers.config.process import DiffusionOptions
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.regression import (
    RegressionConfig,
    paper_preset,
    regression_parts,
)
from objectives import QVPOLoss

# The published sizes, where they differ from the small ones.
_PAPER: dict[str, Any] = {
    "num_envs": 1,
    "batch_size": 256,
    "learning_starts": 10_000,
    "denoising_steps": 20,
    "actor_hidden_sizes": (256, 256, 256),
    "critic_hidden_sizes": (256, 256, 256),
    "critic_normalization": "none",
    "lr_actor": 1e-4,
    "lr_critic": 3e-4,
    "adam_eps": 1e-5,
    "best_of": 4,
    "num_actions": 64,
    "num_uniform_actions": 10,
}
#: Where the weight of uniform actions ends, as a share of where it starts.
_LAST_SHARE = 0.1


@configuration(best_of=2)
class QVPOConfig(RegressionConfig, DiffusionOptions):
    """QVPO: the policy is fitted to the best of its own actions."""

    method: ClassVar[str] = "qvpo"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = paper_preset(_PAPER)
    num_actions: int = option(
        8, "actions of the policy in each state, of which it is fitted to one", valid=at_least(2)
    )
    num_uniform_actions: int = option(
        2, "uniform actions in each state that it is fitted to as well", valid=at_least(0)
    )
    uniform_weight: float = option(
        0.02,
        "weight of a uniform action, as a share of that of the best one; falls to a tenth of it "
        "during the run",
        valid=at_least(0),
    )


def qvpo_parts(env: EnvBase, config: QVPOConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    process = DiffusionConfig(schedule=config.noise_schedule)
    parts = regression_parts(
        QVPOLoss,
        env,
        config,
        process,
        device,
        num_actions=config.num_actions,
        uniform=config.num_uniform_actions,
        uniform_weight=config.uniform_weight,
    )
    first, last = config.uniform_weight, _LAST_SHARE * config.uniform_weight
    fall = (first - last) / max(1, config.planned_updates)

    def after_update() -> None:
        parts.after_update()
        parts.loss.weight.uniform_weight.sub_(fall).clamp_(min=last)

    return replace(parts, after_update=after_update)


QVPO = Method(QVPOConfig, qvpo_parts, "regression on the best of the policy's own actions")
