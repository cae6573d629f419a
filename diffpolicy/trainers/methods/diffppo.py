"""DiffPPO: PPO on the steps of a denoising chain (arXiv 2512.02019)."""

from typing import ClassVar, Literal

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from diffpolicy.actors import build_ppo_networks
from diffpolicy.trainers.config.critic import CriticHeadOptions
from diffpolicy.trainers.config.on_policy import CHAIN_ROWS
from diffpolicy.trainers.config.options import changed, configuration, option
from diffpolicy.trainers.config.process import OnPolicyChainOptions
from diffpolicy.trainers.config.temperature import TemperatureOptions
from diffpolicy.trainers.loops.environments import observation_keys
from diffpolicy.trainers.loops.on_policy import OnPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.networks import (
    noise_annealing,
    process_config,
    process_diagnostics,
    relative_rate,
    temperature,
    value_range,
    written_chain,
)
from diffpolicy.trainers.methods.ppo import PPOConfig, network_config
from objectives import DiffPPOLoss

# Lost nothing on HalfCheetah beside 1 and was ahead on Hopper, in single runs (docs/diffppo.md).
_FIRST_NOISE_SCALE = 1.4


@configuration(
    # A fixed temperature is a coefficient like others: a resumed run may have another one.
    temperature=changed(0.001, fixed=False),
    learn_temperature=False,
    target_entropy=-5.0,
    initial_noise_scale=changed(
        None,
        text="factor on the noise of the chain's steps at the start (default: "
        f"{_FIRST_NOISE_SCALE}, with --init-from 1, which clones are trained for)",
    ),
    critic_head=changed("scalar", choices=("scalar", "hl_gauss")),
)
class DiffPPOConfig(PPOConfig, OnPolicyChainOptions, TemperatureOptions, CriticHeadOptions):
    """DiffPPO: PPO on the steps of a denoising chain."""

    method: ClassVar[str] = "diffppo"
    row_options: ClassVar[tuple[str, ...]] = CHAIN_ROWS

    advantage_normalization: Literal["center", "standardize"] = option(
        "standardize",
        "what is done to the advantages of a minibatch",
        choices=("center", "standardize"),
    )

    @property
    def first_noise_scale(self) -> float:
        """The factor on the noise at the start."""
        if self.initial_noise_scale is None and self.init_from is None:
            return _FIRST_NOISE_SCALE
        return super().first_noise_scale

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_head == "hl_gauss" and self.clip_value is not None:
            raise ValueError(
                f"--clip-value {self.clip_value} cannot be combined with --critic-head hl_gauss; "
                "leave one of them out."
            )


def diffppo_parts(env: EnvBase, config: DiffPPOConfig, device: torch.device) -> OnPolicyParts:
    """Networks and loss; training rows are the steps of denoising chains."""
    networks = build_ppo_networks(
        env,
        observation_keys=observation_keys(env, config),
        denoising_steps=config.denoising_steps,
        process=process_config(config),
        network=network_config(config, _value_support(config)),
        return_chain=written_chain(config),
        device=device,
    )
    loss = DiffPPOLoss(
        networks.actor,
        networks.critic,
        temperature=temperature(config, networks.actor.process.action_dim),
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
        rollout = loss.mdp.with_kernels(rollout)
        loss.value_estimator(rollout)
        return loss.chain_rows(rollout).reshape(-1)

    return OnPolicyParts(
        loss=loss,
        prepare=prepare,
        normalizer=networks.normalizer,
        lr_multipliers={
            "process": relative_rate(config.lr_process, config.lr, 3.0),
            "temperature": relative_rate(config.lr_temperature, config.lr, 1.0),
        },
        diagnostics=lambda: process_diagnostics(networks.actor.process),
        anneal=noise_annealing(networks.actor.process, config),
    )


def _value_support(config: DiffPPOConfig) -> tuple[float, float, int] | None:
    if config.critic_head == "scalar":
        return None
    assert config.bins is not None
    return (*value_range(config), config.bins)


DIFFPPO = Method(DiffPPOConfig, diffppo_parts, "PPO on the steps of a denoising chain")
