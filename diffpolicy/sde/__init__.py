"""Mathematics of the denoising process: tensors in, tensors out, torch only."""

from diffpolicy.sde.clipping import inward_clamp
from diffpolicy.sde.likelihood import (
    Gaussian,
    gaussian_kl,
    gaussian_log_prob,
    log_ratio,
    prior_log_prob,
    tanh_log_det,
)
from diffpolicy.sde.process import DenoisingProcess
from diffpolicy.sde.protocol import (
    DeterministicStep,
    NoiseLevel,
    Process,
    RolloutMode,
    check_densities,
)
from diffpolicy.sde.rectified_flow import FlowProcess, MeanFlowProcess, RectifiedFlowProcess
from diffpolicy.sde.rollout import (
    Chain,
    ScoreFunction,
    checkpointed,
    draw_noise,
    rollout_chain,
    rollout_last,
    rollout_latents,
    sampled_log_ratio,
)
from diffpolicy.sde.schedules import NOISE_SCHEDULES, SCHEDULES, LinearBetas, schedule_factors
from diffpolicy.sde.variance_preserving import Variance, VariancePreservingProcess

__all__ = [
    "NOISE_SCHEDULES",
    "SCHEDULES",
    "Chain",
    "DenoisingProcess",
    "DeterministicStep",
    "FlowProcess",
    "Gaussian",
    "LinearBetas",
    "MeanFlowProcess",
    "NoiseLevel",
    "Process",
    "RectifiedFlowProcess",
    "RolloutMode",
    "ScoreFunction",
    "Variance",
    "VariancePreservingProcess",
    "check_densities",
    "checkpointed",
    "draw_noise",
    "gaussian_kl",
    "gaussian_log_prob",
    "inward_clamp",
    "log_ratio",
    "prior_log_prob",
    "rollout_chain",
    "rollout_last",
    "rollout_latents",
    "sampled_log_ratio",
    "schedule_factors",
    "tanh_log_det",
]
