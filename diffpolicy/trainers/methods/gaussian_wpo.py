"""Gaussian WPO, the baseline of DiffWPO: the same loss on chains of one step."""

from typing import ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import build_gaussian_wpo_networks
from diffpolicy.trainers.config.options import above, configuration, option
from diffpolicy.trainers.loops.environments import observation_keys
from diffpolicy.trainers.loops.on_policy import OnPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.wpo import WPOConfig, critic_config, network_config, wpo_parts


@configuration()
class GaussianWPOConfig(WPOConfig):
    """The Gaussian baseline: WPO with a scale that does not depend on the observation."""

    method: ClassVar[str] = "gaussian_wpo"

    initial_std: float = option(
        1.0, "initial standard deviation before squashing", valid=above(0), fixed=True
    )


def gaussian_wpo_parts(
    env: EnvBase, config: GaussianWPOConfig, device: torch.device
) -> OnPolicyParts:
    """Networks with a squashed Gaussian, and the loss."""
    networks = build_gaussian_wpo_networks(
        env,
        network=network_config(config),
        critic=critic_config(config),
        observation_keys=observation_keys(env, config),
        initial_std=config.initial_std,
        device=device,
    )
    return wpo_parts(
        networks,
        config,
        device,
        diagnostics=lambda: {"policy_std": float(networks.actor.std.detach().mean())},
    )


GAUSSIAN_WPO = Method(
    GaussianWPOConfig, gaussian_wpo_parts, "Wasserstein policy optimisation, a baseline"
)
