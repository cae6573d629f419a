"""Builders: actors and critics of every method, sized from an environment's specs."""

from diffpolicy.actors.build.actors import build_denoising_actor
from diffpolicy.actors.build.off_policy import (
    build_diffsac_networks,
    build_dime_networks,
    build_gaussian_sac_networks,
    build_regression_networks,
)
from diffpolicy.actors.build.on_policy import (
    build_diffwpo_networks,
    build_gaussian_ppo_networks,
    build_gaussian_wpo_networks,
    build_ppo_networks,
)
from diffpolicy.actors.build.recipe import ActorRecipe, recipe_of
from diffpolicy.actors.build.sizes import ActorCritic

__all__ = [
    "ActorCritic",
    "ActorRecipe",
    "build_denoising_actor",
    "build_diffsac_networks",
    "build_diffwpo_networks",
    "build_dime_networks",
    "build_gaussian_ppo_networks",
    "build_gaussian_sac_networks",
    "build_gaussian_wpo_networks",
    "build_ppo_networks",
    "build_regression_networks",
    "recipe_of",
]
