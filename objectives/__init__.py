"""Losses for diffusion policies as TorchRL loss modules."""

from objectives.advantages import DenoisingGAE
from objectives.diff_ppo import DiffPPOLoss
from objectives.temperature import FixedTemperature, LearnedTemperature, Temperature

__all__ = [
    "DenoisingGAE",
    "DiffPPOLoss",
    "FixedTemperature",
    "LearnedTemperature",
    "Temperature",
]
