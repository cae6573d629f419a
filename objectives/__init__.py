"""Losses for diffusion policies as TorchRL loss modules."""

from objectives.behavior_cloning import BehaviorCloningLoss
from objectives.dacer import DACERLoss
from objectives.diff_ppo import DiffPPOLoss
from objectives.diff_sac import DiffSACLoss
from objectives.diff_wpo import DiffWPOLoss
from objectives.diffusion_ql import DiffusionQLLoss
from objectives.dime import DIMELoss
from objectives.dipo import DIPOLoss
from objectives.dpmd import DPMDLoss, FPMDLoss
from objectives.entropy_regulator import EntropyRegulator
from objectives.estimators import DenoisingGAE, DenoisingTDLambda
from objectives.maxent_dp import MaxEntDPLoss
from objectives.multiplier import LearnedMultiplier
from objectives.q_critic import QCritic
from objectives.qsm import QSMLoss
from objectives.qvpo import QVPOLoss
from objectives.regression import DenoisingRegressionLoss
from objectives.sdac import SDACLoss
from objectives.temperature import FixedTemperature, LearnedTemperature, Temperature

__all__ = [
    "BehaviorCloningLoss",
    "DACERLoss",
    "DIMELoss",
    "DIPOLoss",
    "DPMDLoss",
    "DenoisingGAE",
    "DenoisingRegressionLoss",
    "DenoisingTDLambda",
    "DiffPPOLoss",
    "DiffSACLoss",
    "DiffWPOLoss",
    "DiffusionQLLoss",
    "EntropyRegulator",
    "FPMDLoss",
    "FixedTemperature",
    "LearnedMultiplier",
    "LearnedTemperature",
    "MaxEntDPLoss",
    "QCritic",
    "QSMLoss",
    "QVPOLoss",
    "SDACLoss",
    "Temperature",
]
