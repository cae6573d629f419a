"""Configurations of off-policy methods; as in config.py, every field is a command line flag."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from diffpolicy.actors import DIME_CPU
from diffpolicy.trainers.config.options import above, at_least, between, changed, finite, option
from diffpolicy.trainers.config.run import RunConfig


@dataclass(frozen=True)
class OffPolicyConfig(RunConfig):
    """Off-policy training from a replay buffer."""

    num_envs: int = option(4, "environments of each rank", valid=at_least(1))
    learning_starts: int = option(
        5_000,
        "environment steps of each rank before the first update, which act at random; a run that "
        "is resumed without its replay buffer fills it again with as many steps of the trained "
        "policy",
        valid=at_least(1),
    )
    iteration_frames: int = option(
        1_000,
        "environment steps of each rank in an iteration, which gives one row of metrics",
        valid=at_least(1),
    )
    updates_per_step: float = option(
        1.0, "updates for each environment step of a rank, such as 2 or 0.25", valid=above(0)
    )
    policy_delay: int = option(
        3, "the policy and the temperature move at every n-th update", valid=at_least(1)
    )
    batch_size: int = option(128, "transitions in an update on each rank", valid=at_least(1))
    replay_size: int = option(
        1_000_000, "transitions that each rank's replay buffer holds", valid=at_least(1)
    )
    replay_storage: Literal["memory", "disk"] = option(
        "memory", "where each rank's replay buffer is", choices=("memory", "disk")
    )
    checkpoint_replay: Literal["never", "last", "always"] = option(
        "last",
        "which checkpoints keep the replay buffer: none, the newest one or each; without it a "
        "resumed run first fills it again, so that its results are others",
        choices=("never", "last", "always"),
    )
    prioritized_replay: bool = option(False, "sample transitions by their TD error")
    gamma: float = option(0.99, "discount of an environment step", valid=between(0, 1), fixed=True)
    lr_actor: float = option(1e-3, "learning rate of the policy", valid=above(0))
    lr_critic: float = option(1e-3, "learning rate of the critics", valid=above(0))
    reward_scale: float = option(
        1.0, "factor on the rewards that are trained on", valid=above(0), fixed=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_starts", "iteration_frames"):
            self._check_multiple(name)
        random_frames = self.refill_frames
        if self.total_frames <= random_frames:
            raise ValueError(
                f"--total-frames must be greater than {random_frames}, the random steps of "
                f"--learning-starts on {self.ranks} rank(s), got {self.total_frames}."
            )
        if self.replay_size < max(self.learning_starts, self.batch_size):
            raise ValueError(
                "--replay-size must be at least --learning-starts and --batch-size, got "
                f"{self.replay_size}."
            )
        updates = Fraction(str(self.updates_per_step)) * self.iteration_frames
        if updates.denominator > 1:
            works = math.lcm(Fraction(str(self.updates_per_step)).denominator, self.num_envs)
            raise ValueError(
                f"--updates-per-step {self.updates_per_step} times --iteration-frames "
                f"{self.iteration_frames} must be a whole number; use a multiple of {works} for "
                "--iteration-frames."
            )

    @property
    def refill_frames(self) -> int:
        """Steps that fill the replay buffers of all ranks again."""
        return self.learning_starts * self.ranks

    @property
    def replay_checkpoints(self) -> str:
        """As ``--checkpoint-replay`` says."""
        return self.checkpoint_replay

    def _check_multiple(self, name: str) -> None:
        value, envs = getattr(self, name), self.num_envs
        if value % envs:
            raise ValueError(
                f"--{name.replace('_', '-')} must be a multiple of --num-envs {envs}, got {value}; "
                f"try {-(-value // envs) * envs}."
            )


@dataclass(frozen=True)
class SoftActorCriticConfig(OffPolicyConfig):
    """Soft actor-critic."""

    env: str = changed(OffPolicyConfig, "env", "Pendulum-v1")
    critic_hidden_sizes: tuple[int, ...] = option(
        DIME_CPU.critic.hidden,
        "width of a hidden layer of each critic; repeat the flag for each layer",
        valid=at_least(1),
        fixed=True,
    )
    learn_temperature: bool = option(True, "learn the temperature", fixed=True)
    lr_temperature: float = option(1e-3, "learning rate of a learned temperature", valid=above(0))


@dataclass(frozen=True)
class SACConfig(SoftActorCriticConfig):
    """SAC: the Gaussian baseline, TorchRL's loss with the published settings."""

    method: ClassVar[str] = "sac"

    policy_delay: int = changed(OffPolicyConfig, "policy_delay", 1)
    batch_size: int = changed(OffPolicyConfig, "batch_size", 256)
    lr_actor: float = changed(OffPolicyConfig, "lr_actor", 3e-4)
    lr_critic: float = changed(OffPolicyConfig, "lr_critic", 3e-4)
    lr_temperature: float = changed(SoftActorCriticConfig, "lr_temperature", 3e-4)
    actor_hidden_sizes: tuple[int, ...] = option(
        (256, 256),
        "width of a hidden layer of the policy's network; repeat the flag for each layer",
        valid=at_least(1),
        fixed=True,
    )
    critic_normalization: Literal["layer", "none"] = option(
        "none",
        "normalisation inside the critics: layer normalisation or none",
        choices=("layer", "none"),
        fixed=True,
    )
    num_qvalue_nets: int = option(
        2, "critics, whose smallest value is a target", valid=at_least(1), fixed=True
    )
    tau: float = option(
        0.005, "how far the target networks move at every update", valid=between(0, 1)
    )
    temperature: float = option(
        1.0,
        "weight of the policy's entropy, at the start if it is learned",
        valid=above(0),
        fixed=True,
    )
    target_entropy: float = option(
        -1.0,
        "target of a learned temperature: the policy's entropy, for each action dimension",
        valid=finite(),
    )


@dataclass(frozen=True)
class ChainConfig(SoftActorCriticConfig):
    """Soft actor-critic with a denoising chain."""

    eval_policy: str = changed(OffPolicyConfig, "eval_policy", "stochastic")
    denoising_steps: int = option(
        DIME_CPU.denoising_steps, "steps of the denoising chain", valid=at_least(1), fixed=True
    )
    prior_std: float = option(
        2.5, "standard deviation of the chain's prior", valid=above(0), fixed=True
    )
    step_schedule: str = option(
        "cosine", "step sizes along the chain", choices=("constant", "linear", "cosine"), fixed=True
    )
    step_size: float = option(0.1, "initial step size of the chain", valid=above(0), fixed=True)
    actor_hidden_sizes: tuple[int, ...] = option(
        DIME_CPU.network.actor_hidden,
        "width of a hidden layer of the score network; repeat the flag for each layer",
        valid=at_least(1),
        fixed=True,
    )
    critic_normalization: Literal["batch", "layer", "none"] = option(
        "batch",
        "normalisation inside the critics: batch renormalisation, layer normalisation or none",
        choices=("batch", "layer", "none"),
        fixed=True,
    )
    delay_critic: bool = option(
        False, "take next values from target networks; needs --critic-normalization layer or none"
    )
    tau: float = option(
        0.005,
        "how far the target networks of --delay-critic move at every update",
        valid=between(0, 1),
    )
    temperature: float = option(
        1.0,
        "weight of the entropy bound, at the start if it is learned",
        valid=above(0),
        fixed=True,
    )
    target_entropy: float = option(
        -4.0,
        "target of a learned temperature: the entropy bound without the prior's term, for each "
        "action dimension",
        valid=finite(),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_critic and self.critic_normalization == "batch":
            raise ValueError(
                "--delay-critic does not go with --critic-normalization batch, whose running "
                "statistics target networks leave behind; use layer or none, or --no-delay-critic."
            )


def check_value_range(given: tuple[float, float] | None, head: str, *, has_range: bool) -> None:
    """Raise ValueError unless ``--value-range`` is sound and the critic's ``head`` has one."""
    if given is None:
        return
    low, high = given
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"--value-range must be a smaller and a greater number, got {low:g} {high:g}."
        )
    if not has_range:
        raise ValueError(f"--value-range is for {head}; leave one of them out.")
