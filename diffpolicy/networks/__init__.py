"""Torch modules: step embeddings, score networks, critics and normalisation layers."""

from diffpolicy.networks.batch_renorm import BatchRenorm
from diffpolicy.networks.categorical import CategoricalSupport
from diffpolicy.networks.critics import DenoisingValueNetwork, HLGauss
from diffpolicy.networks.denoising_q import DenoisingQEnsemble
from diffpolicy.networks.embeddings import IntervalEmbedding, StepEmbedding
from diffpolicy.networks.encoders import ImageEncoder, MakeEncoder, ObservationEncoder
from diffpolicy.networks.gaussian import GaussianHead
from diffpolicy.networks.mlp import ACTIVATIONS, lecun_normal_, mlp
from diffpolicy.networks.normalization import RunningNorm
from diffpolicy.networks.q_ensemble import QEnsemble
from diffpolicy.networks.return_scale import RETURN_LIMIT, ReturnScale
from diffpolicy.networks.score import ScoreNetwork

__all__ = [
    "ACTIVATIONS",
    "RETURN_LIMIT",
    "BatchRenorm",
    "CategoricalSupport",
    "DenoisingQEnsemble",
    "DenoisingValueNetwork",
    "GaussianHead",
    "HLGauss",
    "ImageEncoder",
    "IntervalEmbedding",
    "MakeEncoder",
    "ObservationEncoder",
    "QEnsemble",
    "ReturnScale",
    "RunningNorm",
    "ScoreNetwork",
    "StepEmbedding",
    "lecun_normal_",
    "mlp",
]
