"""Lightning trainers: the only part of the library that imports lightning.

:func:`run_script` is the command line of all training scripts, :func:`prepare` and :func:`train`
are its two halves, :class:`OnPolicyModule` trains any on-policy loss that is given as
:class:`OnPolicyParts`, and :class:`OffPolicyModule` any off-policy loss given as
:class:`OffPolicyParts`.
"""

from diffpolicy.trainers.algorithms import (
    diffppo_module,
    diffppo_parts,
    gaussian_ppo_module,
    gaussian_ppo_parts,
)
from diffpolicy.trainers.base import RLModule, RunCallback
from diffpolicy.trainers.cli import run_script
from diffpolicy.trainers.config import OnPolicyConfig, PPOConfig, RunConfig
from diffpolicy.trainers.diff_sac import diffsac_module, diffsac_parts
from diffpolicy.trainers.diff_sac_config import DiffSACConfig
from diffpolicy.trainers.dime import dime_module, dime_parts
from diffpolicy.trainers.dime_config import DIMEConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.evaluator import EVALUATION_SEED, Evaluation
from diffpolicy.trainers.launch import Run, prepare, train
from diffpolicy.trainers.off_policy import OffPolicyModule, OffPolicyParts, Optimizer
from diffpolicy.trainers.off_policy_config import OffPolicyConfig, SACConfig
from diffpolicy.trainers.on_policy import OnPolicyModule, OnPolicyParts
from diffpolicy.trainers.on_policy_config import (
    DiffPPOConfig,
    DiffWPOConfig,
    GaussianPPOConfig,
    GaussianWPOConfig,
)
from diffpolicy.trainers.sac import sac_module, sac_parts
from diffpolicy.trainers.wpo import (
    diffwpo_module,
    diffwpo_parts,
    gaussian_wpo_module,
    gaussian_wpo_parts,
)

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
