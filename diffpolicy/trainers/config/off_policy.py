"""What every off-policy run is told."""

import math
from fractions import Fraction
from typing import ClassVar, Literal

from collectors.streams.replay import demonstrated_rows
from diffpolicy.trainers.config.optimizer import OptimizerOptions
from diffpolicy.trainers.config.options import (
    above,
    at_least,
    between,
    configuration,
    flag_name,
    option,
)
from diffpolicy.trainers.config.reward import RewardOptions
from diffpolicy.trainers.config.run import RunConfig

# Published with RLPD (arXiv 2302.02948).
_FRACTION = 0.5


@configuration(env="Pendulum-v1", num_envs=4)
class OffPolicyConfig(RunConfig, RewardOptions, OptimizerOptions):
    """Off-policy training from a replay buffer."""

    #: What ``learning_starts`` is at most, unless it is given.
    most_random_frames: ClassVar[int] = 5_000

    learning_starts: int = option(
        None,
        "environment steps of each rank before the first update, which act at random (with "
        "--init-from as the policy does); a run that is resumed without its replay buffer fills it "
        "again with as many steps of the trained policy (default: a tenth of --total-frames, at "
        f"most {most_random_frames})",
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
    demonstrations: str | None = option(
        None,
        "data set of which every update has a share, as DATA of diffpolicy clone: a folder, a .pt "
        "or .npz file, minari:NAME or lerobot:NAME, with next observations, rewards and ends",
    )
    demonstration_fraction: float | None = option(
        None,
        "share of the transitions of an update that are of --demonstrations (default: "
        f"{_FRACTION:g})",
        valid=between(0, 1),
    )
    gamma: float = option(0.99, "discount of an environment step", valid=between(0, 1), fixed=True)
    lr_actor: float = option(1e-3, "learning rate of the policy", valid=above(0))
    lr_critic: float = option(1e-3, "learning rate of the critics", valid=above(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_starts is None:
            # Resolved once: what is saved, shown and resumed is a number.
            object.__setattr__(self, "learning_starts", self._default_learning_starts())
        for name in ("learning_starts", "iteration_frames"):
            self._check_multiple(name)
        self._check_demonstrations()
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

    def chunks(self, frames: int) -> int:
        """How many chunks of actions so many environment steps are, if no episode ends."""
        return frames // self.action_chunk

    @property
    def planned_updates(self) -> int:
        """Updates of the whole run, if no episode ends."""
        frames = self.total_frames - self.refill_frames
        return math.ceil(frames / self.ranks * self.updates_per_step)

    @property
    def refill_frames(self) -> int:
        """Steps that fill the replay buffers of all ranks again."""
        return self.learning_starts * self.ranks

    @property
    def replay_checkpoints(self) -> str:
        """As ``--checkpoint-replay`` says."""
        return self.checkpoint_replay

    def _default_learning_starts(self) -> int:
        """A tenth of the budget of a rank, in whole steps of all environments."""
        budget = min(self.most_random_frames, self.total_frames // (10 * self.ranks))
        return max(1, budget // self.num_envs) * self.num_envs

    def _check_demonstrations(self) -> None:
        if self.demonstrations is None:
            if self.demonstration_fraction is not None:
                raise ValueError(
                    f"--demonstration-fraction {self.demonstration_fraction:g} is for "
                    "--demonstrations; leave it out, or name a data set."
                )
            return
        if self.demonstration_fraction is None:
            object.__setattr__(self, "demonstration_fraction", _FRACTION)
        number = demonstrated_rows(self.batch_size, self.demonstration_fraction or 0.0)
        if not 0 < number < self.batch_size:
            raise ValueError(
                f"--demonstration-fraction {self.demonstration_fraction:g} of --batch-size "
                f"{self.batch_size} is {number} transitions; it must leave some of both kinds "
                "(diffpolicy offline trains on a data set alone)."
            )
        if self.prioritized_replay:
            raise ValueError(
                "--demonstrations does not go with --prioritized-replay, whose draws leave no "
                "fixed share to them; leave one of them out."
            )

    def _check_multiple(self, name: str) -> None:
        value, envs = getattr(self, name), self.num_envs * self.action_chunk
        if value % envs:
            chunks = "" if self.action_chunk == 1 else f" times --action-chunk {self.action_chunk}"
            raise ValueError(
                f"{flag_name(name)} must be a multiple of --num-envs {self.num_envs}{chunks}, got "
                f"{value}; try {-(-value // envs) * envs}."
            )
