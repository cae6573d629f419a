"""FPMD: mirror descent with a rectified flow (arXiv 2507.23675)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import FlowConfig
from diffpolicy.trainers.config.options import configuration
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.mirror_descent import (
    PAPER,
    MirrorDescentConfig,
    mirror_descent_parts,
)
from diffpolicy.trainers.methods.regression import paper_preset
from objectives import FPMDLoss


@configuration()
class FPMDConfig(MirrorDescentConfig):
    """FPMD: mirror descent with a rectified flow."""

    method: ClassVar[str] = "fpmd"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": PAPER}

    preset: str = paper_preset(PAPER)


def fpmd_parts(env: EnvBase, config: FPMDConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    return mirror_descent_parts(FPMDLoss, env, config, FlowConfig(), device)


FPMD = Method(
    FPMDConfig, fpmd_parts, "mirror descent with a rectified flow that can act in one step"
)
