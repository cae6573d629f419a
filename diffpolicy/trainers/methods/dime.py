"""DIME: soft actor-critic through the denoising chain (arXiv 2502.02316)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from diffpolicy.actors import (
    DIME_CPU,
    DIME_PAPER,
    DIME_PROCESS,
    ActorCritic,
    build_dime_networks,
)
from diffpolicy.trainers.config.options import (
    above,
    at_least,
    changed,
    configuration,
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
from objectives import DIMELoss

_PRESETS = {"cpu": DIME_CPU, "paper": DIME_PAPER}
# The published configuration of DIME, where it differs from the small one.
_PAPER: dict[str, Any] = {
    "num_envs": 1,
    "updates_per_step": 2.0,
    "batch_size": 256,
    "lr_actor": 3e-4,
    "lr_critic": 3e-4,
    "denoising_steps": DIME_PAPER.denoising_steps,
    "actor_hidden_sizes": DIME_PAPER.network.actor_hidden,
    "critic_hidden_sizes": DIME_PAPER.critic.hidden,
    "temperature": 1.0,
    "normalize_rewards": False,
    # That of the DeepMind Control Suite; Gymnasium's Ant-v3 and Humanoid-v3 had +-1600.
    "value_range": (-200.0, 200.0),
}


@configuration(
    denoising_steps=DIME_CPU.denoising_steps,
    prior_std=DIME_PROCESS.prior_std,
    step_schedule=DIME_PROCESS.schedule,
    step_size=DIME_PROCESS.step_size,
    actor_hidden_sizes=DIME_CPU.network.actor_hidden,
    critic_hidden_sizes=DIME_CPU.critic.hidden,
    critic_normalization="batch",
    critic_head=changed("categorical", choices=("scalar", "categorical")),
    critic_reduction=changed(
        "mean", text="mean or minimum over the Q networks; min needs scalar ones"
    ),
    target_entropy=-4.0,
    adam_beta1=0.5,
)
class DIMEConfig(ChainConfig):
    """DIME: the entropy bound of a denoising chain in soft actor-critic.

    The constructor takes every option as it is; :meth:`from_preset` begins with those of a preset.
    """

    method: ClassVar[str] = "dime"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = option(
        "cpu",
        "defaults of all other flags: small networks and batches, or the published configuration ("
        + flags_text(_PAPER)
        + ")",
        choices=("cpu", "paper"),
        fixed=True,
    )
    num_next_actions: int = option(1, "next actions that a target averages over", valid=at_least(1))
    critic_entropy_coeff: float = option(
        0.005, "weight of the entropy of categorical critics", valid=at_least(0)
    )
    actor_grad_limit: float = option(
        1.0, "limit of every entry of the policy's gradient; NaN becomes 0", valid=above(0)
    )
    checkpoint_chain: bool = option(
        False, "save memory by computing activations of the chain a second time"
    )
    update_order: Literal["joint", "critic_first"] = option(
        "joint",
        "whether policy and temperature move together with the critics, in one backward pass, or "
        "are then computed with critics that have moved, as published",
        choices=("joint", "critic_first"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_head != "scalar" and self.critic_reduction == "min":
            raise ValueError("--critic-reduction min needs --critic-head scalar.")


def dime_parts(env: EnvBase, config: DIMEConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    preset = _PRESETS[config.preset]
    networks = build_dime_networks(
        env,
        denoising_steps=config.denoising_steps,
        process=replace(process_config(config), noising_step=preset.process.noising_step),
        network=network_options(config, preset.network),
        critic=with_head(scalar_critic_config(config), config),
        observation_keys=observation_keys(env, config),
        device=device,
    )
    loss = _loss(networks, config).to(device)

    return OffPolicyParts(
        loss=loss,
        update=_update(loss, config),
        update_policy=_policy_update(loss, config) if config.update_order != "joint" else None,
        keys=list(loss.in_keys),
        optimizers=optimizers(config, actor_grad_limit=config.actor_grad_limit),
        after_update=target_updates(loss, config),
        diagnostics=lambda: process_diagnostics(networks.actor.process),
    )


def _loss(networks: ActorCritic, config: DIMEConfig) -> DIMELoss:
    loss = DIMELoss(
        networks.actor,
        networks.critic,
        temperature=temperature(config, networks.actor.process.action_dim),
        delay_qvalue=config.delay_critic,
        critic_reduction=config.critic_reduction,
        critic_entropy_coeff=config.critic_entropy_coeff,
        num_next_actions=config.num_next_actions,
        checkpoint_chain=config.checkpoint_chain,
    )
    loss.make_value_estimator(gamma=config.gamma)
    return loss


def _update(
    loss: DIMELoss, config: DIMEConfig
) -> Callable[[TensorDictBase, bool], dict[str, Tensor]]:
    """All losses, or the critic's alone."""
    calculate = delayed_update(loss, config.compile_mode)

    def update(batch: TensorDictBase, policy_moves: bool) -> dict[str, Tensor]:
        out = calculate(batch, policy_moves)
        if config.compile and "value_clip_fraction" in out:
            # Compiled code cannot warn.
            loss.value_range.watch(out["value_clip_fraction"])
        return out

    return update


def _policy_update(
    loss: DIMELoss, config: DIMEConfig
) -> Callable[[TensorDictBase], dict[str, Tensor]]:
    """The losses of policy and temperature, with the critics as they are when it is called."""
    actor_loss = loss.actor_loss
    if config.compile_mode is not None:
        actor_loss = torch.compile(actor_loss, mode=config.compile_mode)

    def update(batch: TensorDictBase) -> dict[str, Tensor]:
        value, entropies = actor_loss(batch)
        out = {"loss_actor": value}
        if loss.temperature.learned:
            out["loss_alpha"] = loss.alpha_loss(batch, entropies["entropy"])
        means = {name: entropy.mean() for name, entropy in entropies.items()}
        return {**out, **means, "alpha": loss.temperature()}

    return update


DIME = Method(DIMEConfig, dime_parts, "the entropy bound of a denoising chain in soft actor-critic")
