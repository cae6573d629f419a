"""The regression family and DiffusionQL: what their methods share."""

from collections.abc import Mapping
from typing import Any

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import (
    ActorCritic,
    AnyProcessConfig,
    BestOfActor,
    NetworkConfig,
    build_regression_networks,
)
from diffpolicy.trainers.config.critic import DelayedCriticOptions, QHeadOptions
from diffpolicy.trainers.config.network import NetworkOptions
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.options import (
    at_least,
    changed,
    configuration,
    flags_text,
    option,
)
from diffpolicy.trainers.config.process import ChainLengthOptions
from diffpolicy.trainers.loops.environments import observation_keys
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.networks import network_options, scalar_critic_config, with_head
from diffpolicy.trainers.methods.soft import delayed_update, optimizers, target_updates
from objectives import DenoisingRegressionLoss, DiffusionQLLoss

_NETWORK = NetworkConfig(
    normalize_observations=False, score_activation="mish", step_embedding=(8, 32, 16)
)


@configuration(
    eval_policy="stochastic",
    actor_hidden_sizes=(128, 128),
    critic_hidden_sizes=(256, 256),
    policy_delay=1,
    lr_actor=3e-4,
    critic_head=changed("scalar", choices=("scalar", "hl_gauss")),
    critic_normalization=changed("layer", choices=("layer", "none")),
    critic_reduction="min",
    delay_critic=True,
)
class NoisedActionConfig(
    OffPolicyConfig, NetworkOptions, ChainLengthOptions, QHeadOptions, DelayedCriticOptions
):
    """A policy whose latents are noised actions, and critics of actions."""


@configuration()
class RegressionConfig(NoisedActionConfig):
    """A policy whose network is fitted to targets at noised actions."""

    best_of: int = option(
        1,
        "actions of which the critics choose the best one, when acting in training and for the "
        "next action of a target; evaluations take the first one",
        valid=at_least(1),
    )


def paper_preset(published: Mapping[str, Any]) -> Any:
    """The option ``preset`` of a method with published sizes, which are named in its help."""
    return option(
        "cpu",
        "defaults of all other flags: small networks and batches, or the published sizes ("
        + flags_text(published)
        + ")",
        choices=("cpu", "paper"),
        fixed=True,
    )


def noised_action_networks(
    env: EnvBase, config: NoisedActionConfig, process: AnyProcessConfig, device: torch.device
) -> ActorCritic:
    """Actor and critics; arguments as for :func:`regression_parts`."""
    return build_regression_networks(
        env,
        denoising_steps=config.denoising_steps,
        process=process,
        network=network_options(config, _NETWORK),
        critic=with_head(scalar_critic_config(config), config),
        observation_keys=observation_keys(env, config),
        device=device,
    )


def regression_parts(
    loss_class: type[DenoisingRegressionLoss | DiffusionQLLoss],
    env: EnvBase,
    config: RegressionConfig,
    process: AnyProcessConfig,
    device: torch.device,
    **arguments: Any,
) -> OffPolicyParts:
    """Networks, loss and optimisers of one of these methods.

    Args:
        loss_class: its loss.
        env: only its specs are read.
        config: its options.
        process: of the actor.
        device: where to put the parameters.
        **arguments: of the loss, besides those that all methods have.
    """
    networks = noised_action_networks(env, config, process, device)
    loss = loss_class(
        networks.actor,
        networks.critic,
        best_of=config.best_of,
        delay_qvalue=config.delay_critic,
        critic_reduction=config.critic_reduction,
        **arguments,
    ).to(device)
    loss.make_value_estimator(gamma=config.gamma)
    return OffPolicyParts(
        loss=loss,
        update=delayed_update(loss, config.compile_mode),
        keys=list(loss.in_keys),
        optimizers=optimizers(config),
        after_update=target_updates(loss, config),
        policy=best_of_actor(loss, config.best_of),
    )


def best_of_actor(
    loss: DenoisingRegressionLoss | DiffusionQLLoss, number: int
) -> BestOfActor | None:
    """What acts in training, None for the actor itself."""
    if number == 1:
        return None
    return BestOfActor(
        loss.actor_network, loss.qvalue_network, number, over_critics=loss.critic.over_critics
    )
