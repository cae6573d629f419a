"""DiffSAC: its networks, loss and optimisers."""

from dataclasses import replace

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import (
    ActorCritic,
    CriticConfig,
    NetworkConfig,
    RandomChains,
    build_diffsac_networks,
)
from diffpolicy.trainers.diff_sac_config import DiffSACConfig
from diffpolicy.trainers.environments import observation_keys, reward_bound
from diffpolicy.trainers.networks import normalization, process_config, process_diagnostics
from diffpolicy.trainers.off_policy import OffPolicyModule, OffPolicyParts, Optimizer
from diffpolicy.trainers.soft import BOUND_MARGIN, chain_temperature, delayed_update, target_updates
from objectives import DiffSACLoss
from objectives.functional import symmetric_value_range


def diffsac_parts(env: EnvBase, config: DiffSACConfig, device: torch.device) -> OffPolicyParts:
    """DiffSAC: soft actor-critic over the denoising MDP (arXiv 2512.02019)."""
    networks = _networks(env, config, device)
    loss = _loss(networks, config).to(device)
    optimizers = {
        "critic": Optimizer("qvalue_network_params", config.lr_critic),
        "actor": Optimizer("actor_network_params", config.lr_actor, delayed=True),
    }
    if config.learn_temperature:
        optimizers["alpha"] = Optimizer("temperature", config.lr_temperature, delayed=True)
    return OffPolicyParts(
        loss=loss,
        update=delayed_update(loss, config.compile_mode),
        keys=list(loss.in_keys),
        optimizers=optimizers,
        warm_up=RandomChains(networks.actor),
        after_update=target_updates(loss, config),
        diagnostics=lambda: process_diagnostics(networks.actor.process),
    )


def diffsac_module(config: DiffSACConfig, device: torch.device) -> OffPolicyModule:
    """The Lightning module of DiffSAC."""
    return OffPolicyModule(config, diffsac_parts, device)


def _networks(env: EnvBase, config: DiffSACConfig, device: torch.device) -> ActorCritic:
    critic = CriticConfig(
        hidden=config.critic_hidden_sizes,
        normalization=normalization(config.critic_normalization),
        atoms=None,
    )
    if config.critic_head == "hl_gauss":
        critic = replace(critic, atoms=config.bins, hl_gauss=True, value_range=_value_range(config))
    return build_diffsac_networks(
        env,
        denoising_steps=config.denoising_steps,
        process=process_config(config),
        network=NetworkConfig(actor_hidden=config.actor_hidden_sizes, normalize_observations=False),
        critic=critic,
        observation_keys=observation_keys(env, config),
        device=device,
    )


def _loss(networks: ActorCritic, config: DiffSACConfig) -> DiffSACLoss:
    loss = DiffSACLoss(
        networks.actor,
        networks.critic,
        temperature=chain_temperature(networks.actor, config),
        sampled_steps=config.sampled_steps,
        target_steps=config.target_steps or config.denoising_steps,
        delay_qvalue=config.delay_critic,
        critic_reduction=config.critic_reduction,
        discount_mode=config.discount_mode,
        squashed_entropy=config.squashed_entropy,
        fresh_chains=config.fresh_chains,
        center_entropy=config.centers_entropy,
    )
    loss.make_value_estimator(gamma=config.gamma)
    return loss


def _value_range(config: DiffSACConfig) -> tuple[float, float]:
    """The range of the bins: given, or what a task's bounded rewards add up to."""
    if config.value_range is not None:
        return config.value_range
    bound = reward_bound(config)
    if bound is None or config.gamma == 1:
        raise ValueError(
            f"--critic-head hl_gauss needs --value-range MIN MAX: the range of the discounted "
            f"returns of --env {config.env} is not known."
        )
    limit = symmetric_value_range(bound, config.gamma, BOUND_MARGIN)
    return -limit, limit
