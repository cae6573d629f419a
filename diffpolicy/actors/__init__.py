"""TensorDict modules: diffusion actors, their squashing, and builders from environment specs."""

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.build import (
    ActorCritic,
    NetworkConfig,
    ProcessConfig,
    build_denoising_actor,
    build_gaussian_ppo_networks,
    build_ppo_networks,
)
from diffpolicy.actors.chains import chain_rows
from diffpolicy.actors.keys import ActorKeys
from diffpolicy.actors.protocol import ChainActor, PathActor, PathSample
from diffpolicy.actors.squashing import ActionSquash
from diffpolicy.actors.step_actor import DenoisingStepActor

__all__ = [
    "ActionSquash",
    "ActorCritic",
    "ActorKeys",
    "ChainActor",
    "DenoisingActor",
    "DenoisingStepActor",
    "NetworkConfig",
    "PathActor",
    "PathSample",
    "ProcessConfig",
    "build_denoising_actor",
    "build_gaussian_ppo_networks",
    "build_ppo_networks",
    "chain_rows",
]
