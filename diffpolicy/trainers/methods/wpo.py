"""Wasserstein policy optimisation: what DiffWPO and the Gaussian baseline share."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from tensordict import TensorDictBase

from diffpolicy.actors import ActorCritic, CriticConfig, NetworkConfig
from diffpolicy.trainers.config.critic import CriticLossOptions, QHeadOptions
from diffpolicy.trainers.config.network import NetworkOptions
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.config.options import above, at_least, changed, configuration, option
from diffpolicy.trainers.config.temperature import TemperatureOptions
from diffpolicy.trainers.loops.on_policy import OnPolicyParts
from diffpolicy.trainers.methods.networks import (
    network_options,
    relative_rate,
    scalar_critic_config,
    temperature,
    with_head,
)
from objectives import DiffWPOLoss


@configuration(
    max_grad_norm=changed(
        0.5, text="limit of the gradient norm of the policy, and separately of that of the critics"
    ),
    critic_head=changed("scalar", choices=("scalar", "hl_gauss")),
    critic_normalization=changed("none", choices=("layer", "none")),
    temperature=0.001,
    # Critics of rollouts have few updates to follow returns that grow.
    value_scale=changed(1.0, text="factor on the outputs of scalar Q networks"),
)
class WPOConfig(
    OnPolicyConfig, NetworkOptions, QHeadOptions, CriticLossOptions, TemperatureOptions
):
    """Wasserstein policy optimisation: the policy follows the action gradient of Q networks."""

    kl_bound: float = option(
        0.02,
        "trust region: rows on which the policy has moved further than this (in nats, from the "
        "policy that collected them) pull it back",
        valid=above(0),
    )
    initial_multiplier: float = option(
        0.3, "initial weight of that pull, which is learned", valid=above(0), fixed=True
    )
    lr_multiplier: float | None = option(
        None,
        "learning rate of that weight, which 0 keeps (default: ten times --lr)",
        valid=at_least(0),
    )
    kl_samples: int | None = option(
        None,
        "estimate the distance of the trust region from this many samples (default: exact)",
        valid=at_least(1),
    )
    precondition: bool = option(
        False, "multiply the gradient of the policy by its variance, as the first WPO did"
    )


def network_config(config: WPOConfig) -> NetworkConfig:
    """The network of the policy that the options describe."""
    base = NetworkConfig(
        normalize_observations=config.normalize_observations,
    )
    return network_options(config, base)


def critic_config(config: WPOConfig) -> CriticConfig:
    """The Q networks that the options describe."""
    return with_head(scalar_critic_config(config), config)


def wpo_parts(
    networks: ActorCritic,
    config: WPOConfig,
    device: torch.device,
    *,
    diagnostics: Callable[[], dict[str, float]],
    discount_mode: Literal["env", "denoising_step"] = "env",
    lr_multipliers: Mapping[str, float] | None = None,
    anneal: Callable[[float], None] = lambda left: None,
) -> OnPolicyParts:
    """The loss for networks, and what is particular about its training."""
    loss = DiffWPOLoss(
        networks.actor,
        networks.critic,
        temperature=temperature(config, networks.actor.squash.action_dim),
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
        rollout = loss.mdp.with_kernels(rollout)
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
            "temperature": relative_rate(config.lr_temperature, config.lr, 1.0),
            "multiplier": relative_rate(config.lr_multiplier, config.lr, 10.0),
            **(lr_multipliers or {}),
        },
        diagnostics=diagnostics,
        anneal=anneal,
    )
