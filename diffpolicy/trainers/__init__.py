"""Lightning trainers: the only part of the library that imports lightning.

:func:`run_script` is the command line of all training scripts, :func:`prepare` and :func:`train`
are its two halves, :class:`OnPolicyModule` trains any on-policy loss that is given as
:class:`OnPolicyParts`, and :class:`OffPolicyModule` any off-policy loss given as
:class:`OffPolicyParts`.
"""

from diffpolicy.trainers.config.off_policy import OffPolicyConfig, SACConfig
from diffpolicy.trainers.config.on_policy import (
    DiffPPOConfig,
    DiffWPOConfig,
    GaussianPPOConfig,
    GaussianWPOConfig,
)
from diffpolicy.trainers.config.run import OnPolicyConfig, PPOConfig, RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.loops.base import EVALUATION_SEED, Evaluation, RLModule, RunCallback
from diffpolicy.trainers.loops.off_policy import OffPolicyModule, OffPolicyParts, Optimizer
from diffpolicy.trainers.loops.on_policy import OnPolicyModule, OnPolicyParts
from diffpolicy.trainers.methods.diffppo import (
    diffppo_module,
    diffppo_parts,
    gaussian_ppo_module,
    gaussian_ppo_parts,
)
from diffpolicy.trainers.methods.diffsac import diffsac_module, diffsac_parts
from diffpolicy.trainers.methods.diffsac_config import DiffSACConfig
from diffpolicy.trainers.methods.diffwpo import (
    diffwpo_module,
    diffwpo_parts,
    gaussian_wpo_module,
    gaussian_wpo_parts,
)
from diffpolicy.trainers.methods.dime import dime_module, dime_parts
from diffpolicy.trainers.methods.dime_config import DIMEConfig
from diffpolicy.trainers.methods.sac import sac_module, sac_parts
from diffpolicy.trainers.run.cli import run_script
from diffpolicy.trainers.run.launch import Run, prepare, train

__all__ = [
    "EVALUATION_SEED",
    "DIMEConfig",
    "DiffPPOConfig",
    "DiffSACConfig",
    "DiffWPOConfig",
    "Evaluation",
    "GaussianPPOConfig",
    "GaussianWPOConfig",
    "OffPolicyConfig",
    "OffPolicyModule",
    "OffPolicyParts",
    "OnPolicyConfig",
    "OnPolicyModule",
    "OnPolicyParts",
    "Optimizer",
    "PPOConfig",
    "RLModule",
    "Run",
    "RunCallback",
    "RunConfig",
    "SACConfig",
    "TrainingError",
    "diffppo_module",
    "diffppo_parts",
    "diffsac_module",
    "diffsac_parts",
    "diffwpo_module",
    "diffwpo_parts",
    "dime_module",
    "dime_parts",
    "gaussian_ppo_module",
    "gaussian_ppo_parts",
    "gaussian_wpo_module",
    "gaussian_wpo_parts",
    "prepare",
    "run_script",
    "sac_module",
    "sac_parts",
    "train",
]
