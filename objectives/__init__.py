"""Losses for diffusion policies as TorchRL loss modules."""

from objectives.advantages import DenoisingGAE
from objectives.diff_ppo import DiffPPOLoss
from objectives.dime import DIMELoss
from objectives.temperature import FixedTemperature, LearnedTemperature, Temperature

__all__ = [
    "DIMELoss",
    "DenoisingGAE",
    "DiffPPOLoss",
    "FixedTemperature",
    "LearnedTemperature",
    "Temperature",
]
