"""Mirror descent from the policy's own actions: what DPMD and FPMD share."""

import math
from typing import Any

import torch
from torchrl.envs import EnvBase

from diffpolicy.actors import AnyProcessConfig
from diffpolicy.trainers.config.options import above, at_least, changed, configuration, option
from diffpolicy.trainers.config.temperature import LearnableTemperatureOptions
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.regression import RegressionConfig, regression_parts
from objectives import DPMDLoss, LearnedTemperature

#: The published sizes, where they differ from the small ones.
PAPER: dict[str, Any] = {
    "num_envs": 5,
    "batch_size": 256,
    "updates_per_step": 0.2,
    "learning_starts": 30_000,
    "denoising_steps": 20,
    "actor_hidden_sizes": (256, 256, 256),
    "critic_hidden_sizes": (256, 256, 256),
    "critic_normalization": "none",
    "lr_critic": 3e-4,
    "policy_delay": 2,
    "num_actions": 32,
}


@configuration(
    temperature=changed(
        0.01, valid=above(0), text="by which values are divided, at the start if it is learned"
    ),
    learn_temperature=changed(
        True, text="learn the temperature, so that a step of mirror descent has --step-kl"
    ),
    lr_temperature=3e-3,
)
class MirrorDescentConfig(RegressionConfig, LearnableTemperatureOptions):
    """A step of mirror descent from the actions of the target policy."""

    num_actions: int = option(
        8, "actions of the policy in each state that it is fitted to", valid=at_least(2)
    )
    action_spread: float = option(
        0.2,
        "standard deviation of noise on these actions in [-1, 1] units, without which the policy "
        "would become a point",
        valid=at_least(0),
    )
    step_kl: float = option(
        0.5,
        "divergence of a step of mirror descent in nats, which a learned temperature keeps; less "
        "than the logarithm of --num-actions",
        valid=above(0),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        most = math.log(self.num_actions)
        if self.step_kl >= most:
            raise ValueError(
                f"--step-kl must be less than {most:.3g}, the logarithm of --num-actions "
                f"{self.num_actions}, got {self.step_kl}."
            )


def mirror_descent_parts(
    loss_class: type[DPMDLoss],
    env: EnvBase,
    config: MirrorDescentConfig,
    process: AnyProcessConfig,
    device: torch.device,
) -> OffPolicyParts:
    """As :func:`regression_parts`, with the temperature that the options describe."""
    temperature: float | LearnedTemperature = config.temperature
    if config.learn_temperature:
        target = math.log(config.num_actions) - config.step_kl
        temperature = LearnedTemperature(config.temperature, target_entropy=target)
    return regression_parts(
        loss_class,
        env,
        config,
        process,
        device,
        temperature=temperature,
        num_actions=config.num_actions,
        kl=config.step_kl,
        spread=config.action_spread,
    )
