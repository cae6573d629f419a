"""DACER: diffusion actor-critic with entropy regulator (arXiv 2405.15177)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from diffpolicy.actors import DiffusionConfig, NoisyActor
from diffpolicy.trainers.config.options import changed, configuration
from diffpolicy.trainers.config.process import DiffusionOptions
from diffpolicy.trainers.config.temperature import EntropyRegulatorOptions
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.loops.optimizer import Optimizer
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.regression import (
    NoisedActionConfig,
    noised_action_networks,
    paper_preset,
)
from diffpolicy.trainers.methods.soft import delayed_update, optimizers, target_updates
from objectives import DACERLoss, EntropyRegulator

# The published sizes, where they differ from the small ones.
_PAPER: dict[str, Any] = {
    "num_envs": 20,
    "batch_size": 256,
    "updates_per_step": 0.05,
    "learning_starts": 30_000,
    "denoising_steps": 20,
    "actor_hidden_sizes": (256, 256, 256),
    "critic_hidden_sizes": (256, 256, 256),
    "critic_normalization": "none",
    "lr_actor": 1e-4,
    "lr_critic": 1e-4,
    # Published targets move by 0.005 at every second update; here they move at each.
    "tau": 0.0025,
    "normalize_rewards": False,
    "reward_scale": 0.2,
    "entropy_interval": 10_000,
    "noise_in_updates": True,
}


@configuration(
    critic_head=changed("gaussian", choices=("scalar", "gaussian")),
    noise_schedule="vp",
    policy_delay=2,
)
class DACERConfig(NoisedActionConfig, DiffusionOptions, EntropyRegulatorOptions):
    """DACER: the value through the whole chain, and noise for the entropy."""

    method: ClassVar[str] = "dacer"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = paper_preset(_PAPER)


def dacer_parts(env: EnvBase, config: DACERConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    process = DiffusionConfig(schedule=config.noise_schedule, inward_gradient=True)
    networks = noised_action_networks(env, config, process, device)
    target = config.target_entropy * networks.actor.process.action_dim
    loss = DACERLoss(
        networks.actor,
        networks.critic,
        regulator=EntropyRegulator(target, initial=config.temperature),
        noise_scale=config.noise_scale,
        noise_in_updates=config.noise_in_updates,
        entropy_actions=config.entropy_actions,
        delay_qvalue=config.delay_critic,
        critic_reduction=config.critic_reduction,
    ).to(device)
    loss.make_value_estimator(gamma=config.gamma)
    rate = config.lr_actor if config.lr_temperature is None else config.lr_temperature
    alpha = Optimizer("temperature", rate, interval=config.entropy_interval)
    return OffPolicyParts(
        loss=loss,
        update=_update(loss, config.compile_mode),
        keys=list(loss.in_keys),
        optimizers={**optimizers(config), "alpha": alpha},
        before_update=_measurement(loss, config.entropy_interval),
        after_update=target_updates(loss, config),
        policy=NoisyActor(loss.actor_network, loss.temperature, config.noise_scale),
    )


def _update(
    loss: DACERLoss, compile_mode: str | None
) -> Callable[[TensorDictBase, bool], dict[str, Tensor]]:
    """All losses, or those of critics and alpha, which does not wait for the policy."""
    calculate = delayed_update(loss, compile_mode)

    def update(batch: TensorDictBase, policy_moves: bool) -> dict[str, Tensor]:
        out = calculate(batch, policy_moves)
        if not policy_moves:
            entropy = loss.temperature.entropy
            out |= {"loss_alpha": loss.temperature.loss(entropy), "entropy": entropy}
        return out

    return update


def _measurement(loss: DACERLoss, interval: int) -> Callable[[int, TensorDictBase], None]:
    """Measures the entropy at the updates at which alpha moves."""

    def before_update(number: int, batch: TensorDictBase) -> None:
        if number % interval == 0:
            loss.update_entropy(batch)

    return before_update


DACER = Method(DACERConfig, dacer_parts, "the value through a diffusion policy, with noise")
