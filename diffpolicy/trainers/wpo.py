"""DiffWPO and Gaussian WPO: their networks, loss and preparation of rollouts."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from diffpolicy.actors import (
    ActorCritic,
    CriticConfig,
    build_diffwpo_networks,
    build_gaussian_wpo_networks,
)
from diffpolicy.trainers.environments import observation_keys
from diffpolicy.trainers.networks import (
    network_config,
    normalization,
    process_config,
    process_diagnostics,
)
from diffpolicy.trainers.on_policy import OnPolicyModule, OnPolicyParts
from diffpolicy.trainers.on_policy_config import DiffWPOConfig, GaussianWPOConfig, WPOConfig
from objectives import DiffWPOLoss, LearnedTemperature


def diffwpo_parts(env: EnvBase, config: DiffWPOConfig, device: torch.device) -> OnPolicyParts:
    """DiffWPO: rows are the steps of denoising chains (arXiv 2512.02019)."""
    networks = build_diffwpo_networks(
        env,
        denoising_steps=config.denoising_steps,
        process=process_config(config),
        network=network_config(config, value_function=False),
        critic=_critic_config(config),
        observation_keys=observation_keys(env, config),
        device=device,
    )
    return _parts(
        networks,
        config,
        device,
        discount_mode=config.discount_mode,
        lr_multipliers={"process": config.process_lr_multiplier},
        diagnostics=lambda: process_diagnostics(networks.actor.process),
    )


def gaussian_wpo_parts(
    env: EnvBase, config: GaussianWPOConfig, device: torch.device
) -> OnPolicyParts:
    """The baseline: WPO with a squashed Gaussian, as DiffWPO on chains of one step."""
    networks = build_gaussian_wpo_networks(
        env,
        network=network_config(config, value_function=False),
        critic=_critic_config(config),
        observation_keys=observation_keys(env, config),
        initial_std=config.initial_std,
        device=device,
    )
    return _parts(
        networks,
        config,
        device,
        diagnostics=lambda: {"policy_std": float(networks.actor.std.detach().mean())},
    )


def diffwpo_module(config: DiffWPOConfig, device: torch.device) -> OnPolicyModule:
    """The Lightning module of DiffWPO."""
    return OnPolicyModule(config, diffwpo_parts, device)


def gaussian_wpo_module(config: GaussianWPOConfig, device: torch.device) -> OnPolicyModule:
    """The Lightning module of Gaussian WPO."""
    return OnPolicyModule(config, gaussian_wpo_parts, device)


def _parts(
    networks: ActorCritic,
    config: WPOConfig,
    device: torch.device,
    *,
    diagnostics: Callable[[], dict[str, float]],
    discount_mode: Literal["env", "denoising_step"] = "env",
    lr_multipliers: Mapping[str, float] | None = None,
) -> OnPolicyParts:
    loss = DiffWPOLoss(
        networks.actor,
        networks.critic,
        temperature=_temperature(config, networks.actor.squash.action_dim),
        kl_bound=config.kl_bound,
        initial_multiplier=config.initial_multiplier,
        kl_samples=config.kl_samples,
        precondition=config.precondition,
        critic_reduction=config.critic_reduction,
        critic_coeff=config.critic_coeff,
        loss_function=config.loss_critic_type,
        discount_mode=discount_mode,
    ).to(device)
    loss.make_value_estimator(gamma=config.gamma, lmbda=config.lmbda)

    def prepare(rollout: TensorDictBase) -> TensorDictBase:
        loss.value_estimator(rollout)
        return loss.chain_rows(rollout).reshape(-1)

    return OnPolicyParts(
        loss=loss,
        prepare=prepare,
        normalizer=networks.normalizer,
        # One limit for both would let the critics' gradient, the larger by far, scale the policy's.
        grad_norms={
            "grad_norm_actor": "actor_network_params",
            "grad_norm_critic": "qvalue_network_params",
        },
        lr_multipliers={
            "temperature": config.temperature_lr_multiplier,
            "multiplier": config.multiplier_lr_multiplier,
            **(lr_multipliers or {}),
        },
        diagnostics=diagnostics,
    )


def _temperature(config: WPOConfig, action_dim: int) -> float | LearnedTemperature:
    if not config.learn_temperature:
        return config.temperature
    return LearnedTemperature(config.temperature, config.target_entropy * action_dim)


def _critic_config(config: WPOConfig) -> CriticConfig:
    """The Q networks that the options describe."""
    norm = normalization(config.critic_normalization)
    hidden = (config.critic_hidden_size, config.critic_hidden_size)
    if config.value_support is None:
        return CriticConfig(hidden, config.num_critics, norm, atoms=None)
    low, high, bins = config.value_support
    return CriticConfig(hidden, config.num_critics, norm, int(bins), (low, high), hl_gauss=True)
