"""QSM: Q-score matching (arXiv 2312.11752)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import ActorCritic, NetworkConfig, build_dime_networks
from diffpolicy.trainers.config.options import (
    above,
    at_least,
    changed,
    configuration,
    flag_name,
    flags_text,
    option,
)
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
from objectives import QSMLoss

# The published sizes, where they differ from the small ones.
_PAPER: dict[str, Any] = {
    "num_envs": 1,
    "batch_size": 256,
    "learning_starts": 10_000,
    "actor_hidden_sizes": (512, 512),
    "critic_hidden_sizes": (512, 512),
    "critic_normalization": "none",
}


@configuration(
    denoising_steps=5,
    prior_std=1.0,
    step_size=0.2,
    learn_step_size=False,
    learn_friction=False,
    policy_delay=1,
    lr_actor=3e-4,
    lr_critic=3e-4,
    temperature=changed(
        0.001,
        valid=above(0),
        text="weight of the entropy, by which the critic's gradient is divided; at the start if it "
        "is learned",
    ),
    learn_temperature=False,
    critic_head=changed("scalar", choices=("scalar", "hl_gauss")),
    critic_normalization="layer",
    critic_reduction="min",
    delay_critic=True,
)
class QSMConfig(ChainConfig):
    """QSM: the score network is regressed on the critic's gradient."""

    method: ClassVar[str] = "qsm"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = option(
        "cpu",
        "defaults of all other flags: small networks and batches, or the published sizes ("
        + flags_text(_PAPER)
        + ")",
        choices=("cpu", "paper"),
        fixed=True,
    )
    sampled_steps: int = option(
        1, "denoising steps of each transition that an update trains on", valid=at_least(1)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampled_steps > self.denoising_steps:
            raise ValueError(
                f"--sampled-steps must be at most --denoising-steps {self.denoising_steps}, got "
                f"{self.sampled_steps}."
            )
        for name in ("learn_step_size", "learn_friction"):
            if getattr(self, name):
                raise ValueError(
                    f"{flag_name(name)}: QSM trains the score network only; leave it out."
                )


def qsm_parts(env: EnvBase, config: QSMConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    networks = _networks(env, config, device)
    loss = _loss(networks, config).to(device)
    return OffPolicyParts(
        loss=loss,
        update=delayed_update(loss, config.compile_mode),
        keys=list(loss.in_keys),
        optimizers=optimizers(config),
        after_update=target_updates(loss, config),
        diagnostics=lambda: process_diagnostics(networks.actor.process),
    )


def _networks(env: EnvBase, config: QSMConfig, device: torch.device) -> ActorCritic:
    return build_dime_networks(
        env,
        denoising_steps=config.denoising_steps,
        process=process_config(config),
        network=network_options(config, NetworkConfig(normalize_observations=False)),
        critic=with_head(scalar_critic_config(config), config),
        observation_keys=observation_keys(env, config),
        device=device,
    )


def _loss(networks: ActorCritic, config: QSMConfig) -> QSMLoss:
    loss = QSMLoss(
        networks.actor,
        networks.critic,
        temperature=temperature(config, networks.actor.process.action_dim),
        sampled_steps=config.sampled_steps,
        delay_qvalue=config.delay_critic,
        critic_reduction=config.critic_reduction,
    )
    loss.make_value_estimator(gamma=config.gamma)
    return loss


QSM = Method(QSMConfig, qsm_parts, "regression of the score on the critic's gradient")
