"""FPMD: mirror descent with a flow (arXiv 2507.23675)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import AnyProcessConfig, FlowConfig, MeanFlowConfig
from diffpolicy.trainers.config.options import configuration, option
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
    """FPMD: mirror descent with a flow."""

    method: ClassVar[str] = "fpmd"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": PAPER}

    preset: str = paper_preset(PAPER)
    flow: Literal["rectified", "mean"] = option(
        "rectified",
        "what the network predicts: the velocity at a step, or the mean velocity between any two "
        "times (MeanFlow), with which a chain of one step can be trained",
        choices=("rectified", "mean"),
        fixed=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flow == "mean" and self.compile:
            raise ValueError(
                "--compile does not go with --flow mean, whose loss has a derivative in forward "
                "mode; leave it out, or use --flow rectified."
            )


def fpmd_parts(env: EnvBase, config: FPMDConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    process: AnyProcessConfig = MeanFlowConfig() if config.flow == "mean" else FlowConfig()
    return mirror_descent_parts(FPMDLoss, env, config, process, device)


FPMD = Method(FPMDConfig, fpmd_parts, "mirror descent with a flow that can act in one step")
