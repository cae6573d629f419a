"""Configurations of training runs: every field is a command line flag with its default."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from diffpolicy.trainers.config.options import (
    above,
    at_least,
    between,
    check_options,
    flag_name,
    option,
)


@dataclass(frozen=True)
class RunConfig:
    """Any training run.

    Raises:
        ValueError: for a value out of range, naming the flag.
    """

    method: ClassVar[str] = ""
    #: Names of ``--preset`` and the defaults that each of them replaces.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    env: str = option(
        "InvertedPendulum-v5",
        "Gymnasium id of the environment, or dmc:domain-task of the DeepMind Control Suite",
        fixed=True,
    )
    max_episode_steps: int | None = option(
        None,
        "steps after which an episode is cut off (default: the environment's own limit)",
        valid=at_least(1),
    )
    observation_keys: tuple[str, ...] | None = option(
        None,
        "entry of a dictionary observation that the networks read, such as body.speed; repeat the "
        "flag for several (default: every vector of floating-point numbers)",
        fixed=True,
    )
    total_frames: int = option(
        50_000,
        "environment steps of all ranks together, rounded up to whole iterations",
        valid=at_least(1),
    )
    num_envs: int = option(16, "environments of each rank", valid=at_least(1))
    seed: int = option(0, "seed of networks, environments and exploration", valid=at_least(0))
    gpus: int = option(0, "number of CUDA devices, one rank on each; 0 is CPU", valid=at_least(0))
    cpu_ranks: int = option(1, "number of ranks on the CPU", valid=at_least(1))
    num_nodes: int = option(
        1,
        "number of machines, each with --gpus or --cpu-ranks ranks that torchrun or srun starts",
        valid=at_least(1),
    )
    collector: Literal["local", "process", "ray"] = option(
        "local",
        "where environments are stepped: in the process that trains, in worker processes, or on a "
        "Ray cluster (that of RAY_ADDRESS, by default one of its own)",
        choices=("local", "process", "ray"),
    )
    num_workers: int = option(
        0,
        "worker processes of each rank, which share its --num-envs; for --collector process or ray",
        valid=at_least(0),
    )
    restart_workers: int = option(
        0,
        "how often workers of a rank that raise or die are started anew before the run ends",
        valid=at_least(0),
    )
    output: str | None = option(
        None, "folder of all results (default: a new folder in runs/, or that of --resume)"
    )
    resume: str | None = option(
        None,
        "checkpoint to continue from, or last for the newest one in --output, if there is one; "
        "flags that are not given keep its values",
    )
    eval_every: int = option(
        10_000, "environment steps (all ranks) between evaluations", valid=at_least(1)
    )
    eval_episodes: int = option(10, "episodes of an evaluation", valid=at_least(1))
    eval_policy: str = option(
        "deterministic", "how evaluations act", choices=("deterministic", "stochastic")
    )
    checkpoint_every: int = option(
        20_000, "environment steps (all ranks) between checkpoints", valid=at_least(1)
    )
    compile: bool = option(
        False, "compile the loss and the acting policy; on one GPU with CUDA graphs"
    )
    deterministic: bool = option(
        False, "slower GPU kernels that give the same numbers in every run; the CPU's always do"
    )
    logger: tuple[str, ...] = option(
        ("csv", "tensorboard"),
        "where metrics go besides metrics.csv, which is always there; repeat the flag for several",
        choices=("csv", "tensorboard", "wandb"),
    )

    def __post_init__(self) -> None:
        check_options(self)
        keys = self.observation_keys or ()
        if len(set(keys)) < len(keys):
            raise ValueError(
                f"--observation-keys must name every entry once, got {', '.join(keys)}."
            )
        if self.gpus and self.cpu_ranks > 1:
            raise ValueError(
                f"--cpu-ranks {self.cpu_ranks} cannot be combined with --gpus {self.gpus}; "
                "leave one of them out."
            )

        self._check_workers()

    def _check_workers(self) -> None:
        if self.collector == "local":
            for flag, value in (
                ("--num-workers", self.num_workers),
                ("--restart-workers", self.restart_workers),
            ):
                if value:
                    raise ValueError(f"{flag} {value} needs --collector process or ray.")
        elif self.num_workers < 1:
            raise ValueError(
                f"--collector {self.collector} needs --num-workers of at least 1, got "
                f"{self.num_workers}."
            )
        elif self.num_envs % self.num_workers:
            above = -(-self.num_envs // self.num_workers) * self.num_workers
            raise ValueError(
                f"--num-envs must be a multiple of --num-workers {self.num_workers}, got "
                f"{self.num_envs}; try {above}."
            )

    @classmethod
    def from_preset(cls, preset: str, **options: Any) -> Self:
        """The configuration of a preset, with other values for some options.

        Raises:
            ValueError: for a name that does not exist, or a value out of range.
        """
        if preset not in cls.presets:
            names = ", ".join(cls.presets) or "none"
            raise ValueError(f"preset must be one of {names}, got {preset!r}.")
        return cls(**{**cls.presets[preset], "preset": preset, **options})

    @property
    def refill_frames(self) -> int:
        """Environment steps (all ranks) that a resumed run makes before it trains."""
        return 0

    @property
    def replay_checkpoints(self) -> str:
        """Which checkpoints hold the replay buffers: never, last or always."""
        return "never"

    @property
    def compile_mode(self) -> str | None:
        """The mode of ``torch.compile`` for losses; None leaves them as they are."""
        if not self.compile:
            return None
        # CUDA graphs, which are not tested with exchanges between ranks inside of them.
        return "reduce-overhead" if self.gpus and self.ranks == 1 else "default"

    @property
    def ranks_per_node(self) -> int:
        """Number of processes that train on each machine."""
        return self.gpus or self.cpu_ranks

    @property
    def ranks(self) -> int:
        """Number of processes that train together."""
        return self.num_nodes * self.ranks_per_node


@dataclass(frozen=True)
class OnPolicyConfig(RunConfig):
    """On-policy training."""

    #: The options whose product is the number of training rows of a rollout.
    row_options: ClassVar[tuple[str, ...]] = ("num_envs", "rollout_steps")

    rollout_steps: int = option(
        128, "steps of each environment in one iteration", valid=at_least(1)
    )
    epochs: int = option(10, "passes over the rows of a rollout", valid=at_least(1))
    minibatch_size: int | None = option(
        None,
        "rows of a minibatch on each rank (default: an eighth of the rollout's rows)",
        valid=at_least(1),
    )
    lr: float = option(1e-3, "learning rate of the networks", valid=above(0))
    lr_schedule: str = option(
        "linear", "learning rate over the run", choices=("linear", "constant")
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
    hidden_size: int = option(
        64, "width of the two hidden layers of a network", valid=at_least(1), fixed=True
    )
    reward_scale: float = option(1.0, "factor on the rewards that are trained on", valid=above(0))

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
        """Environment steps of one rank in one iteration."""
        return self.num_envs * self.rollout_steps

    @property
    def rollout_rows(self) -> int:
        """Training rows of one rank in one iteration."""
        return math.prod(getattr(self, name) for name in self.row_options)

    @property
    def minibatch_rows(self) -> int:
        """Rows of a minibatch on each rank."""
        return self.minibatch_size or max(1, self.rollout_rows // 8)


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    """Proximal policy optimisation."""

    clip_epsilon: float = option(0.2, "clip range of the probability ratio", valid=above(0))
    clip_value: float | None = option(
        None, "clip range of the value around its old value (default: no clipping)", valid=above(0)
    )
    critic_coeff: float = option(0.5, "weight of the critic loss", valid=at_least(0))
    loss_critic_type: Literal["smooth_l1", "l2", "l1"] = option(
        "smooth_l1",
        "distance between values and their targets",
        choices=("smooth_l1", "l2", "l1"),
    )
