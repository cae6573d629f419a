"""DIME: its networks, loss and optimisers."""

from dataclasses import replace

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from diffpolicy.actors import (
    DIME_CPU,
    DIME_PAPER,
    ActorCritic,
    DIMEPreset,
    build_dime_networks,
)
from diffpolicy.trainers.dime_config import DIMEConfig
from diffpolicy.trainers.environments import observation_keys, reward_bound
from diffpolicy.trainers.networks import normalization, process_diagnostics
from diffpolicy.trainers.off_policy import OffPolicyModule, OffPolicyParts, Optimizer
from diffpolicy.trainers.soft import BOUND_MARGIN, chain_temperature, delayed_update, target_updates
from objectives import DIMELoss

_PRESETS = {"cpu": DIME_CPU, "paper": DIME_PAPER}
# As BOUND_MARGIN, for rewards that random actions have seen, which grow with training.
_SEEN_MARGIN = 4.0


def dime_parts(env: EnvBase, config: DIMEConfig, device: torch.device) -> OffPolicyParts:
    """DIME: soft actor-critic through the denoising chain (arXiv 2502.02316)."""
    keys = observation_keys(env, config)
    networks = build_dime_networks(
        env, observation_keys=keys, device=device, **vars(_sizes(config))
    )
    loss = _loss(networks, config).to(device)
    critic = Optimizer("qvalue_network_params", config.lr_critic, (config.adam_beta1, 0.999))
    actor = replace(
        critic,
        part="actor_network_params",
        lr=config.lr_actor,
        delayed=True,
        grad_limit=config.actor_grad_limit,
    )
    optimizers = {"critic": critic, "actor": actor}
    if config.learn_temperature:
        optimizers["alpha"] = Optimizer("temperature", config.lr_temperature, delayed=True)

    calculate = delayed_update(loss, config.compile_mode)

    def update(batch: TensorDictBase, policy_moves: bool) -> dict[str, Tensor]:
        out = calculate(batch, policy_moves)
        if config.compile and "value_clip_fraction" in out:
            # Compiled code cannot warn.
            loss.value_range.watch(out["value_clip_fraction"])
        return out

    def begin(rewards: Tensor) -> None:
        if config.critic_type == "categorical" and config.value_range is None:
            _derive_value_range(loss, rewards, reward_bound(config))

    return OffPolicyParts(
        loss=loss,
        update=update,
        keys=list(loss.in_keys),
        optimizers=optimizers,
        begin=begin,
        after_update=target_updates(loss, config),
        diagnostics=lambda: process_diagnostics(networks.actor.process),
    )


def dime_module(config: DIMEConfig, device: torch.device) -> OffPolicyModule:
    """The Lightning module of DIME."""
    return OffPolicyModule(config, dime_parts, device)


def _sizes(config: DIMEConfig) -> DIMEPreset:
    """The networks of the preset, with what the flags change."""
    preset = _PRESETS[config.preset]
    critic = replace(
        preset.critic,
        hidden=config.critic_hidden_sizes,
        normalization=normalization(config.critic_normalization),
        atoms=None if config.critic_type == "scalar" else preset.critic.atoms,
        value_range=config.value_range or preset.critic.value_range,
    )
    process = replace(
        preset.process,
        prior_std=config.prior_std,
        schedule=config.step_schedule,
        step_size=config.step_size,
    )
    network = replace(preset.network, actor_hidden=config.actor_hidden_sizes)
    return DIMEPreset(config.denoising_steps, process, network, critic)


def _loss(networks: ActorCritic, config: DIMEConfig) -> DIMELoss:
    loss = DIMELoss(
        networks.actor,
        networks.critic,
        temperature=chain_temperature(networks.actor, config),
        delay_qvalue=config.delay_critic,
        critic_reduction=config.critic_reduction,
        critic_entropy_coeff=config.critic_entropy_coeff,
        num_next_actions=config.num_next_actions,
        checkpoint_chain=config.checkpoint_chain,
    )
    loss.make_value_estimator(gamma=config.gamma)
    return loss


def _derive_value_range(loss: DIMELoss, rewards: Tensor, bound: float | None) -> None:
    """Let the critics' atoms span the returns that the task's rewards can add up to."""
    margin = _SEEN_MARGIN if bound is None else BOUND_MARGIN
    if bound is not None:
        rewards = torch.full((1, 1), bound, device=rewards.device)
    batch = TensorDict({"next": {"reward": rewards}}, [len(rewards)])
    loss.derive_value_range(batch, margin=margin)
