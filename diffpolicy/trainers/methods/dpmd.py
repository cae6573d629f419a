"""DPMD: mirror descent with a diffusion (arXiv 2502.00361)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import DiffusionConfig
from diffpolicy.trainers.config.options import configuration
from diffpolicy.trainers.config.process import DiffusionOptions
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.mirror_descent import (
    PAPER,
    MirrorDescentConfig,
    mirror_descent_parts,
)
from diffpolicy.trainers.methods.regression import paper_preset
from objectives import DPMDLoss

_PAPER: dict[str, Any] = {**PAPER, "noise_schedule": "linear"}


@configuration()
class DPMDConfig(MirrorDescentConfig, DiffusionOptions):
    """DPMD: mirror descent with a diffusion."""

    method: ClassVar[str] = "dpmd"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = paper_preset(_PAPER)


def dpmd_parts(env: EnvBase, config: DPMDConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    process = DiffusionConfig(schedule=config.noise_schedule)
    return mirror_descent_parts(DPMDLoss, env, config, process, device)


DPMD = Method(DPMDConfig, dpmd_parts, "mirror descent from the policy's own weighted actions")
