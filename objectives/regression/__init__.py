"""The regression family: its loss, and the parts that its methods are made of."""

from objectives.regression.log_prob import DenoisingLogProb
from objectives.regression.loss import DenoisingRegressionLoss
from objectives.regression.parts import (
    Candidates,
    LogProb,
    Noised,
    Proposal,
    RegressionTarget,
    Target,
    Weight,
    Weighted,
    noised_actions,
)
from objectives.regression.proposals import ImprovedActions, OwnActions, ReplayedActions
from objectives.regression.targets import (
    MeanFlowTarget,
    NoiseTarget,
    PosteriorTarget,
    ValueGradientTarget,
)
from objectives.regression.weights import (
    AdvantageWeight,
    BestAction,
    BoltzmannWeight,
    Evenly,
    valued,
)

__all__ = [
    "AdvantageWeight",
    "BestAction",
    "BoltzmannWeight",
    "Candidates",
    "DenoisingLogProb",
    "DenoisingRegressionLoss",
    "Evenly",
    "ImprovedActions",
    "LogProb",
    "MeanFlowTarget",
    "NoiseTarget",
    "Noised",
    "OwnActions",
    "PosteriorTarget",
    "Proposal",
    "RegressionTarget",
    "ReplayedActions",
    "Target",
    "ValueGradientTarget",
    "Weight",
    "Weighted",
    "noised_actions",
    "valued",
]
