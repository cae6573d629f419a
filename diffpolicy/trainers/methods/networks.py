"""What the options of several methods say about networks and processes."""

from dataclasses import replace
from typing import Literal

import torch

from diffpolicy.actors import NetworkConfig, ProcessConfig
from diffpolicy.sde import DenoisingProcess
from diffpolicy.trainers.config.process import ChainOptions
from diffpolicy.trainers.config.run import OnPolicyConfig
from diffpolicy.trainers.methods.diffsac_config import DiffSACConfig


def network_config(config: OnPolicyConfig, *, value_function: bool) -> NetworkConfig:
    """The policy's network, and with ``value_function`` one of the same size for values."""
    hidden = (config.hidden_size, config.hidden_size)
    network = NetworkConfig(
        actor_hidden=hidden, normalize_observations=config.normalize_observations
    )
    return replace(network, critic_hidden=hidden) if value_function else network


def normalization(name: Literal["batch", "layer", "none"]) -> Literal["batch", "layer"] | None:
    """What :class:`CriticConfig` takes for a value of ``--critic-normalization``."""
    return None if name == "none" else name


def process_config(options: ChainOptions | DiffSACConfig) -> ProcessConfig:
    """The denoising process that the options describe."""
    return ProcessConfig(
        prior_std=options.prior_std,
        schedule=options.step_schedule,
        step_size=options.step_size,
        learn_step_size=options.learn_step_size,
        step_size_per_step=options.step_size_per_step,
        friction=options.friction,
        learn_friction=options.learn_friction,
    )


def process_diagnostics(process: DenoisingProcess) -> dict[str, float]:
    """Step sizes ``eta`` over steps and action dimensions, and the mean friction."""
    with torch.no_grad():
        sizes = process.step_sizes()
        return {
            "step_size_mean": float(sizes.mean()),
            "step_size_min": float(sizes.min()),
            "step_size_max": float(sizes.max()),
            "friction": float(process.friction.mean()),
        }
