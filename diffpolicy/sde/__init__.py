"""Mathematics of the denoising process: tensors in, tensors out, torch only."""

from diffpolicy.sde.likelihood import (
    Gaussian,
    gaussian_kl,
    gaussian_log_prob,
    log_ratio,
    prior_log_prob,
    tanh_log_det,
)
from diffpolicy.sde.process import DenoisingProcess
from diffpolicy.sde.rollout import (
    Chain,
    DeterministicStep,
    RolloutMode,
    checkpointed,
    draw_noise,
    rollout_chain,
    rollout_last,
    rollout_latents,
    sampled_log_ratio,
)
from diffpolicy.sde.schedules import SCHEDULES, schedule_factors

__all__ = [
    "SCHEDULES",
    "Chain",
    "DenoisingProcess",
    "DeterministicStep",
    "Gaussian",
    "RolloutMode",
    "checkpointed",
    "draw_noise",
    "gaussian_kl",
    "gaussian_log_prob",
    "log_ratio",
    "prior_log_prob",
    "rollout_chain",
    "rollout_last",
    "rollout_latents",
    "sampled_log_ratio",
    "schedule_factors",
    "tanh_log_det",
]
