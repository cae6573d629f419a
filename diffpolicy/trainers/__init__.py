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
from diffpolicy.trainers.base import EVALUATION_SEED, Evaluation, RLModule, RunCallback
from diffpolicy.trainers.cli import run_script
from diffpolicy.trainers.config import DiffPPOConfig, GaussianPPOConfig, PPOConfig, RunConfig
from diffpolicy.trainers.dime import dime_module, dime_parts
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.launch import Run, prepare, train
from diffpolicy.trainers.off_policy import OffPolicyModule, OffPolicyParts, Optimizer
from diffpolicy.trainers.off_policy_config import DIMEConfig, OffPolicyConfig
from diffpolicy.trainers.on_policy import OnPolicyModule, OnPolicyParts

__all__ = [
    "EVALUATION_SEED",
    "DIMEConfig",
    "DiffPPOConfig",
    "Evaluation",
    "GaussianPPOConfig",
    "OffPolicyConfig",
    "OffPolicyModule",
    "OffPolicyParts",
    "OnPolicyModule",
    "OnPolicyParts",
    "Optimizer",
    "PPOConfig",
    "RLModule",
    "Run",
    "RunCallback",
    "RunConfig",
    "TrainingError",
    "diffppo_module",
    "diffppo_parts",
    "dime_module",
    "dime_parts",
    "gaussian_ppo_module",
    "gaussian_ppo_parts",
    "prepare",
    "run_script",
    "train",
]
