"""DiffPPO and Gaussian PPO: their networks, loss and preparation of rollouts."""

from dataclasses import replace

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss

from diffpolicy.actors import build_gaussian_ppo_networks, build_ppo_networks
from diffpolicy.networks.ranks import sum_over_ranks
from diffpolicy.trainers.environments import observation_keys
from diffpolicy.trainers.networks import network_config, process_config, process_diagnostics
from diffpolicy.trainers.on_policy import OnPolicyModule, OnPolicyParts
from diffpolicy.trainers.on_policy_config import DiffPPOConfig, GaussianPPOConfig
from objectives import DiffPPOLoss, LearnedTemperature
from objectives.functional import normalized_advantage


def diffppo_parts(env: EnvBase, config: DiffPPOConfig, device: torch.device) -> OnPolicyParts:
    """DiffPPO: rows are the steps of denoising chains (arXiv 2512.02019)."""
    networks = build_ppo_networks(
        env,
        observation_keys=observation_keys(env, config),
        denoising_steps=config.denoising_steps,
        process=process_config(config),
        network=replace(
            network_config(config, value_function=True), value_support=_value_support(config)
        ),
        device=device,
    )
    loss = DiffPPOLoss(
        networks.actor,
        networks.critic,
        temperature=_temperature(config),
        clip_epsilon=config.clip_epsilon,
        clip_value=config.clip_value,
        critic_coeff=config.critic_coeff,
        loss_critic_type=config.loss_critic_type,
        advantage_normalization=config.advantage_normalization,
    ).to(device)
    loss.make_value_estimator(
        gamma=config.gamma, lmbda=config.lmbda, discount_mode=config.discount_mode
    )

    def prepare(rollout: TensorDictBase) -> TensorDictBase:
        loss.value_estimator(rollout)
        return loss.chain_rows(rollout).reshape(-1)

    return OnPolicyParts(
        loss=loss,
        prepare=prepare,
        normalizer=networks.normalizer,
        lr_multipliers={"process": config.process_lr_multiplier},
        diagnostics=lambda: process_diagnostics(networks.actor.process),
    )


def gaussian_ppo_parts(
    env: EnvBase, config: GaussianPPOConfig, device: torch.device
) -> OnPolicyParts:
    """The baseline: TorchRL's ClipPPOLoss with a tanh-squashed Gaussian."""
    networks = build_gaussian_ppo_networks(
        env,
        observation_keys=observation_keys(env, config),
        network=network_config(config, value_function=True),
        device=device,
    )
    loss = _ClipPPOLoss(
        networks.actor,
        networks.critic,
        clip_epsilon=config.clip_epsilon,
        clip_value=config.clip_value,
        entropy_bonus=config.entropy_coeff > 0,
        entropy_coeff=config.entropy_coeff,
        critic_coeff=config.critic_coeff,
        loss_critic_type=config.loss_critic_type,
        normalize_advantage=False,
    ).to(device)
    loss.make_value_estimator(gamma=config.gamma, lmbda=config.lmbda)

    def prepare(rollout: TensorDictBase) -> TensorDictBase:
        loss.value_estimator(rollout)
        return rollout.reshape(-1)

    return OnPolicyParts(loss=loss, prepare=prepare, normalizer=networks.normalizer)


class _ClipPPOLoss(ClipPPOLoss):
    """Standardises the advantages of a minibatch over all ranks; TorchRL does so on each alone."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        key = self.tensor_keys.advantage
        advantage = tensordict.get(key)
        standardized, _ = normalized_advantage(
            advantage, "standardize", sum_over_ranks=sum_over_ranks
        )
        return super().forward(tensordict.copy().set(key, standardized))


def diffppo_module(config: DiffPPOConfig, device: torch.device) -> OnPolicyModule:
    """The Lightning module of DiffPPO."""
    return OnPolicyModule(config, diffppo_parts, device)


def gaussian_ppo_module(config: GaussianPPOConfig, device: torch.device) -> OnPolicyModule:
    """The Lightning module of Gaussian PPO."""
    return OnPolicyModule(config, gaussian_ppo_parts, device)


def _temperature(config: DiffPPOConfig) -> float | LearnedTemperature:
    if config.target_entropy is None:
        return config.temperature
    return LearnedTemperature(config.temperature, config.target_entropy)


def _value_support(config: DiffPPOConfig) -> tuple[float, float, int] | None:
    if config.value_support is None:
        return None
    low, high, bins = config.value_support
    return low, high, int(bins)
