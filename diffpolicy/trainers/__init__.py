"""Lightning trainers: the only part of the library that imports lightning.

:func:`run_script` is the command line of all training scripts, :func:`prepare` and :func:`train`
are its two halves, and :class:`OnPolicyModule` trains any on-policy loss that is given as
:class:`OnPolicyParts`.
"""

from diffpolicy.trainers.algorithms import (
    diffppo_module,
    diffppo_parts,
    gaussian_ppo_module,
    gaussian_ppo_parts,
)
from diffpolicy.trainers.base import Evaluation, RLModule, RunCallback
from diffpolicy.trainers.cli import run_script
from diffpolicy.trainers.config import DiffPPOConfig, GaussianPPOConfig, PPOConfig, RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.launch import Run, prepare, train
from diffpolicy.trainers.on_policy import OnPolicyModule, OnPolicyParts

__all__ = [
    "DiffPPOConfig",
    "Evaluation",
    "GaussianPPOConfig",
    "OnPolicyModule",
    "OnPolicyParts",
    "PPOConfig",
    "RLModule",
    "Run",
    "RunCallback",
    "RunConfig",
    "TrainingError",
    "diffppo_module",
    "diffppo_parts",
    "gaussian_ppo_module",
    "gaussian_ppo_parts",
    "prepare",
    "run_script",
    "train",
]
