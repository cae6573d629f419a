"""Configurations of off-policy methods; as in config.py, every field is a command line flag."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

from diffpolicy.actors import DIME_CPU, DIME_PAPER
from diffpolicy.trainers.config import RunConfig
from diffpolicy.trainers.options import above, at_least, between, finite, flag_name, option

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
}


@dataclass(frozen=True)
class OffPolicyConfig(RunConfig):
    """Off-policy training from a replay buffer."""

    num_envs: int = option(4, "environments of each rank", valid=at_least(1))
    learning_starts: int = option(
        5_000,
        "environment steps of each rank before the first update, which act at random; a resumed "
        "run fills its replay buffer again with as many steps of the trained policy",
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

    def _check_multiple(self, name: str) -> None:
        value, envs = getattr(self, name), self.num_envs
        if value % envs:
            raise ValueError(
                f"--{name.replace('_', '-')} must be a multiple of --num-envs {envs}, got {value}; "
                f"try {-(-value // envs) * envs}."
            )


@dataclass(frozen=True)
class DIMEConfig(OffPolicyConfig):
    """DIME: the entropy bound of a denoising chain in soft actor-critic.

    The constructor takes every option as it is; :meth:`from_preset` begins with those of a preset.
    """

    method: ClassVar[str] = "dime"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = option(
        "cpu",
        "defaults of all other flags: small networks and batches, or the published configuration ("
        + ", ".join(f"{flag_name(name)} {value}" for name, value in _PAPER.items())
        + ")",
        choices=("cpu", "paper"),
        fixed=True,
    )
    env: str = option(
        "Pendulum-v1",
        "Gymnasium id of the environment, or dmc:domain-task of the DeepMind Control Suite",
        fixed=True,
    )
    eval_policy: str = option(
        "stochastic", "how evaluations act", choices=("deterministic", "stochastic")
    )
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
    critic_hidden_sizes: tuple[int, ...] = option(
        DIME_CPU.critic.hidden,
        "width of a hidden layer of each critic; repeat the flag for each layer",
        valid=at_least(1),
        fixed=True,
    )
    critic_type: Literal["categorical", "scalar"] = option(
        "categorical", "what the critics predict", choices=("categorical", "scalar"), fixed=True
    )
    critic_normalization: Literal["batch", "layer", "none"] = option(
        "batch",
        "normalisation inside the critics: batch renormalisation, layer normalisation or none",
        choices=("batch", "layer", "none"),
        fixed=True,
    )
    value_range: tuple[float, float] | None = option(
        None,
        "range of categorical critics (default: derived from the rewards of the random steps, or "
        "from the task where its rewards are known to be bounded)",
        metavar=("MIN", "MAX"),
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
    critic_reduction: Literal["mean", "min"] = option(
        "mean", "mean or minimum over the critics; min needs scalar ones", choices=("mean", "min")
    )
    num_next_actions: int = option(1, "next actions that a target averages over", valid=at_least(1))
    critic_entropy_coeff: float = option(
        0.005, "weight of the entropy of categorical critics", valid=at_least(0)
    )
    temperature: float = option(
        1.0,
        "weight of the entropy bound, at the start if it is learned",
        valid=above(0),
        fixed=True,
    )
    learn_temperature: bool = option(True, "learn the temperature", fixed=True)
    target_entropy: float = option(
        -4.0,
        "target of a learned temperature: the entropy bound without the prior's term, for each "
        "action dimension",
        valid=finite(),
    )
    lr_temperature: float = option(1e-3, "learning rate of a learned temperature", valid=above(0))
    adam_beta1: float = option(
        0.5, "first Adam coefficient of policy and critics", valid=between(0, 0.999)
    )
    actor_grad_limit: float = option(
        1.0, "limit of every entry of the policy's gradient; NaN becomes 0", valid=above(0)
    )
    checkpoint_chain: bool = option(
        False, "save memory by computing activations of the chain a second time"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        scalar = self.critic_type == "scalar"
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"--value-range must be a smaller and a greater number, got {low:g} {high:g}."
                )
            if scalar:
                raise ValueError(
                    "--value-range is for --critic-type categorical; leave one of them out."
                )
        if self.gamma == 1 and self.value_range is None and not scalar:
            raise ValueError(
                "--gamma 1 leaves the range of values open; give it with --value-range MIN MAX."
            )
        if self.critic_reduction == "min" and not scalar:
            raise ValueError("--critic-reduction min needs --critic-type scalar.")
        if self.delay_critic and self.critic_normalization == "batch":
            raise ValueError(
                "--delay-critic does not go with --critic-normalization batch, whose running "
                "statistics target networks leave behind; use layer or none."
            )
