"""TensorDict modules: diffusion actors, their squashing, and builders from environment specs."""

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.build import (
    build_denoising_actor,
    build_gaussian_ppo_networks,
    build_ppo_networks,
)
from diffpolicy.actors.build_q import build_dime_networks, build_gaussian_sac_networks
from diffpolicy.actors.chains import chain_rows
from diffpolicy.actors.configs import (
    DIME_CPU,
    DIME_PAPER,
    DIME_PROCESS,
    CriticConfig,
    DIMEPreset,
    NetworkConfig,
    ProcessConfig,
)
from diffpolicy.actors.keys import ActorKeys
from diffpolicy.actors.protocol import ChainActor, PathActor, PathSample
from diffpolicy.actors.sizes import ActorCritic
from diffpolicy.actors.squashing import ActionSquash
from diffpolicy.actors.step_actor import DenoisingStepActor

__all__ = [
    "DIME_CPU",
    "DIME_PAPER",
    "DIME_PROCESS",
    "ActionSquash",
    "ActorCritic",
    "ActorKeys",
    "ChainActor",
    "CriticConfig",
    "DIMEPreset",
    "DenoisingActor",
    "DenoisingStepActor",
    "NetworkConfig",
    "PathActor",
    "PathSample",
    "ProcessConfig",
    "build_denoising_actor",
    "build_dime_networks",
    "build_gaussian_ppo_networks",
    "build_gaussian_sac_networks",
    "build_ppo_networks",
    "chain_rows",
]
