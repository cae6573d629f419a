"""Torch modules: step embeddings, score networks, critics and observation statistics."""

from diffpolicy.networks.critics import DenoisingValueNetwork, HLGauss, QNetwork
from diffpolicy.networks.embeddings import StepEmbedding
from diffpolicy.networks.mlp import mlp
from diffpolicy.networks.normalization import RunningNorm
from diffpolicy.networks.score import ScoreNetwork

__all__ = [
    "DenoisingValueNetwork",
    "HLGauss",
    "QNetwork",
    "RunningNorm",
    "ScoreNetwork",
    "StepEmbedding",
    "mlp",
]
