"""DiffSAC: soft actor-critic over the denoising MDP (arXiv 2512.02019)."""

from typing import ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import (
    ActionChains,
    ActorCritic,
    NetworkConfig,
    RandomChains,
    build_diffsac_networks,
)
from diffpolicy.trainers.config.options import at_least, changed, configuration, flag_name, option
from diffpolicy.trainers.config.process import DenoisingMDPOptions
from diffpolicy.trainers.loops.environments import observation_keys
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.networks import (
    network_options,
    process_config,
    process_diagnostics,
    scalar_critic_config,
    temperature,
    with_head,
)
from diffpolicy.trainers.methods.soft import (
    ChainConfig,
    delayed_update,
    optimizers,
    target_updates,
)
from objectives import DiffSACLoss


@configuration(
    policy_delay=1,
    target_entropy=-2.0,
    critic_head=changed("scalar", choices=("scalar", "hl_gauss")),
    critic_normalization="layer",
    critic_reduction="min",
    delay_critic=True,
    tau=0.05,
)
class DiffSACConfig(ChainConfig, DenoisingMDPOptions):
    """DiffSAC: soft actor-critic on the steps of a denoising chain."""

    method: ClassVar[str] = "diffsac"

    squashed_entropy: bool = option(
        True,
        "measure the entropy of the action; otherwise that of the latent before squashing, as "
        "published",
        fixed=True,
    )
    fresh_chains: bool = option(
        True,
        "train on chains of the current policy; of those that acted only the last steps remain",
    )
    center_entropy: bool | None = option(
        None,
        "count entropies in values from the target of a learned temperature on (default: if the "
        "temperature is learned)",
    )
    sampled_steps: int = option(
        1, "denoising steps of each transition that an update trains on", valid=at_least(1)
    )
    target_steps: int | None = option(
        None,
        "denoising steps that a target simulates before it bootstraps (default: whole chains)",
        valid=at_least(1),
    )
    actor_steps: int | None = option(
        1,
        "denoising steps that the policy's loss takes before the critics judge, with its gradient "
        "through all of them; 1 is as published (default: to the ends of chains)",
        valid=at_least(1),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sampled_steps", "target_steps", "actor_steps"):
            if (getattr(self, name) or 1) > self.denoising_steps:
                raise ValueError(
                    f"{flag_name(name)} must be at most --denoising-steps "
                    f"{self.denoising_steps}, got {getattr(self, name)}."
                )
        if self.center_entropy and not self.learn_temperature:
            raise ValueError(
                "--center-entropy is for a learned temperature, whose target it subtracts; leave "
                "it out, or --no-learn-temperature."
            )

    @property
    def centers_entropy(self) -> bool:
        """Whether entropies in values count from the target of the temperature on."""
        return self.learn_temperature and self.center_entropy is not False


def diffsac_parts(env: EnvBase, config: DiffSACConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers; random steps act with chains of noise."""
    networks = _networks(env, config, device)
    loss = _loss(networks, config).to(device)
    return OffPolicyParts(
        loss=loss,
        update=delayed_update(loss, config.compile_mode),
        keys=list(loss.in_keys),
        optimizers=optimizers(config),
        warm_up=RandomChains(networks.actor),
        complete=ActionChains(networks.actor),
        after_update=target_updates(loss, config),
        diagnostics=lambda: process_diagnostics(networks.actor.process),
    )


def _networks(env: EnvBase, config: DiffSACConfig, device: torch.device) -> ActorCritic:
    return build_diffsac_networks(
        env,
        denoising_steps=config.denoising_steps,
        process=process_config(config),
        network=network_options(config, NetworkConfig(normalize_observations=False)),
        critic=with_head(scalar_critic_config(config), config),
        observation_keys=observation_keys(env, config),
        device=device,
    )


def _loss(networks: ActorCritic, config: DiffSACConfig) -> DiffSACLoss:
    loss = DiffSACLoss(
        networks.actor,
        networks.critic,
        temperature=temperature(config, networks.actor.process.action_dim),
        sampled_steps=config.sampled_steps,
        target_steps=config.target_steps or config.denoising_steps,
        actor_steps=config.actor_steps or config.denoising_steps,
        delay_qvalue=config.delay_critic,
        critic_reduction=config.critic_reduction,
        discount_mode=config.discount_mode,
        squashed_entropy=config.squashed_entropy,
        fresh_chains=config.fresh_chains,
        center_entropy=config.centers_entropy,
    )
    loss.make_value_estimator(gamma=config.gamma)
    return loss


DIFFSAC = Method(
    DiffSACConfig, diffsac_parts, "soft actor-critic on the steps of a denoising chain"
)
