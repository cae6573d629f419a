"""The regression family: its loss, and the parts that its methods are made of."""

from objectives.regression.loss import DenoisingRegressionLoss
from objectives.regression.parts import (
    Candidates,
    Noised,
    Proposal,
    RegressionTarget,
    Target,
    Weight,
    Weighted,
    best_action,
    noised_actions,
)
from objectives.regression.proposals import OwnActions, ReplayedActions
from objectives.regression.targets import NoiseTarget, ValueGradientTarget
from objectives.regression.weights import AdvantageWeight, Evenly, valued

__all__ = [
    "AdvantageWeight",
    "Candidates",
    "DenoisingRegressionLoss",
    "Evenly",
    "NoiseTarget",
    "Noised",
    "OwnActions",
    "Proposal",
    "RegressionTarget",
    "ReplayedActions",
    "Target",
    "ValueGradientTarget",
    "Weight",
    "Weighted",
    "best_action",
    "noised_actions",
    "valued",
]
