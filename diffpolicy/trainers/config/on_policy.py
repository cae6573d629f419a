"""What every on-policy run is told."""

import math
from typing import ClassVar

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

CHAIN_ROWS = ("num_envs", "rollout_steps", "denoising_steps")
"""Row options of methods that train on the steps of chains."""


@configuration(adam_eps=1e-5)
class OnPolicyConfig(RunConfig, RewardOptions, OptimizerOptions):
    """On-policy training."""

    #: The options whose product is the number of training rows of a rollout.
    row_options: ClassVar[tuple[str, ...]] = ("num_envs", "rollout_steps")

    rollout_steps: int = option(
        128,
        "steps of each environment in one iteration (with --action-chunk: chunks)",
        valid=at_least(1),
    )
    epochs: int = option(10, "passes over the rows of a rollout", valid=at_least(1))
    minibatch_size: int | None = option(
        None,
        "rows of a minibatch on each rank (default: an eighth of the rollout's rows)",
        valid=at_least(1),
    )
    lr: float = option(1e-3, "learning rate of the networks", valid=above(0))
    lr_schedule: str = option(
        "linear",
        "learning rate over the run; linear falls to zero at --total-frames, a resumed run with "
        "another --total-frames goes on from the learning rate that it has reached",
        choices=("linear", "constant"),
    )
    gamma: float = option(0.99, "discount of an environment step", valid=between(0, 1))
    lmbda: float = option(
        0.95, "lambda of generalised advantages or lambda-returns", valid=between(0, 1)
    )
    max_grad_norm: float = option(0.5, "limit of the gradient norm", valid=above(0))
    target_kl: float | None = option(
        None, "end an iteration's updates once the policy has moved this far", valid=above(0)
    )
    normalize_observations: bool = option(
        True, "standardise observations by running statistics", fixed=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatch_rows > self.rollout_rows:
            words = " times ".join(
                f"{flag_name(name)} {getattr(self, name)}" for name in self.row_options
            )
            raise ValueError(
                f"--minibatch-size must be at most {self.rollout_rows}, the rows of a rollout "
                f"({words}), got {self.minibatch_size}."
            )

    @property
    def rollout_frames(self) -> int:
        """Environment steps of one rank in one iteration (with --action-chunk: chunks)."""
        return self.num_envs * self.rollout_steps

    @property
    def rollout_rows(self) -> int:
        """Training rows of one rank in one iteration."""
        return math.prod(getattr(self, name) for name in self.row_options)

    @property
    def minibatch_rows(self) -> int:
        """Rows of a minibatch on each rank."""
        return self.minibatch_size or max(1, self.rollout_rows // 8)
