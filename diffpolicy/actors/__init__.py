"""TensorDict modules: diffusion actors, their squashing, and builders from environment specs."""

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.best_of import BestOfActor, best_action
from diffpolicy.actors.build import (
    ActorCritic,
    ActorRecipe,
    build_denoising_actor,
    build_diffsac_networks,
    build_diffwpo_networks,
    build_dime_networks,
    build_gaussian_ppo_networks,
    build_gaussian_sac_networks,
    build_gaussian_wpo_networks,
    build_ppo_networks,
    build_regression_networks,
    recipe_of,
)
from diffpolicy.actors.chains import SimulatedStep, chain_rows, rows_at
from diffpolicy.actors.configs import (
    DIME_CPU,
    DIME_PAPER,
    DIME_PROCESS,
    AnyProcessConfig,
    CriticConfig,
    DiffusionConfig,
    DIMEPreset,
    FlowConfig,
    MeanFlowConfig,
    NetworkConfig,
    ProcessConfig,
)
from diffpolicy.actors.denoising_mdp import DenoisingMDP
from diffpolicy.actors.encoded import EncodedActor, with_encoder
from diffpolicy.actors.gaussian import GaussianChainActor
from diffpolicy.actors.keys import RESERVED_KEYS, ActorKeys, ReturnedChain
from diffpolicy.actors.noisy import NoisyActor
from diffpolicy.actors.protocol import (
    ChainActor,
    PathActor,
    PathSample,
    RegressionActor,
    observation_keys,
)
from diffpolicy.actors.random_chains import ActionChains, RandomChains
from diffpolicy.actors.squashing import ActionClip, ActionMap, ActionSquash
from diffpolicy.actors.step_actor import DenoisingStepActor
from diffpolicy.actors.torchrl_actor import ConcatenatedScore, from_torchrl

__all__ = [
    "DIME_CPU",
    "DIME_PAPER",
    "DIME_PROCESS",
    "RESERVED_KEYS",
    "ActionChains",
    "ActionClip",
    "ActionMap",
    "ActionSquash",
    "ActorCritic",
    "ActorKeys",
    "ActorRecipe",
    "AnyProcessConfig",
    "BestOfActor",
    "ChainActor",
    "ConcatenatedScore",
    "CriticConfig",
    "DIMEPreset",
    "DenoisingActor",
    "DenoisingMDP",
    "DenoisingStepActor",
    "DiffusionConfig",
    "EncodedActor",
    "FlowConfig",
    "GaussianChainActor",
    "MeanFlowConfig",
    "NetworkConfig",
    "NoisyActor",
    "PathActor",
    "PathSample",
    "ProcessConfig",
    "RandomChains",
    "RegressionActor",
    "ReturnedChain",
    "SimulatedStep",
    "best_action",
    "build_denoising_actor",
    "build_diffsac_networks",
    "build_diffwpo_networks",
    "build_dime_networks",
    "build_gaussian_ppo_networks",
    "build_gaussian_sac_networks",
    "build_gaussian_wpo_networks",
    "build_ppo_networks",
    "build_regression_networks",
    "chain_rows",
    "from_torchrl",
    "observation_keys",
    "recipe_of",
    "rows_at",
    "with_encoder",
]
