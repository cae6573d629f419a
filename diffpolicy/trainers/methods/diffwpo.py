"""DiffWPO: WPO on the steps of a denoising chain (arXiv 2512.02019)."""

from typing import ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import build_diffwpo_networks
from diffpolicy.trainers.config.on_policy import CHAIN_ROWS
from diffpolicy.trainers.config.options import configuration
from diffpolicy.trainers.config.process import OnPolicyChainOptions
from diffpolicy.trainers.loops.environments import observation_keys
from diffpolicy.trainers.loops.on_policy import OnPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.networks import (
    noise_annealing,
    process_config,
    process_diagnostics,
    relative_rate,
    written_chain,
)
from diffpolicy.trainers.methods.wpo import WPOConfig, critic_config, network_config, wpo_parts


@configuration(
    # Learned, it falls for as long as the entropy is above its target, and the entropy falls after
    # it, faster than the temperature can come back (docs/diffwpo.md).
    learn_temperature=False,
    target_entropy=-8.0,
    step_size_per_step=True,
    learn_friction=False,
)
class DiffWPOConfig(WPOConfig, OnPolicyChainOptions):
    """DiffWPO: WPO on the steps of a denoising chain."""

    method: ClassVar[str] = "diffwpo"
    row_options: ClassVar[tuple[str, ...]] = CHAIN_ROWS


def diffwpo_parts(env: EnvBase, config: DiffWPOConfig, device: torch.device) -> OnPolicyParts:
    """Networks and loss; training rows are the steps of denoising chains."""
    networks = build_diffwpo_networks(
        env,
        denoising_steps=config.denoising_steps,
        process=process_config(config),
        network=network_config(config),
        critic=critic_config(config),
        observation_keys=observation_keys(env, config),
        return_chain=written_chain(config),
        device=device,
    )
    return wpo_parts(
        networks,
        config,
        device,
        discount_mode=config.discount_mode,
        lr_multipliers={"process": relative_rate(config.lr_process, config.lr, 3.0)},
        diagnostics=lambda: process_diagnostics(networks.actor.process),
        anneal=noise_annealing(networks.actor.process, config),
    )


DIFFWPO = Method(
    DiffWPOConfig,
    diffwpo_parts,
    "Wasserstein policy optimisation on the steps of a denoising chain",
)
