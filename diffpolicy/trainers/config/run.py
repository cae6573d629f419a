"""What every training run is told: task, length, devices, collection, output."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from diffpolicy.names import shown, unnamed
from diffpolicy.trainers.config.options import (
    Options,
    at_least,
    configuration,
    fields_of,
    flag_name,
    option,
)


@configuration()
class RunConfig(Options):
    """Any training run.

    Raises:
        ValueError: for a value out of range, naming the flag.
    """

    method: ClassVar[str] = ""
    #: Names of ``--preset`` and the defaults that each of them replaces.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    env: str | Callable[..., Any] | Any = option(
        "InvertedPendulum-v5",
        "Gymnasium id of the environment, module:Id or module:factory (also of the current "
        "folder), or dmc:domain-task of the DeepMind Control Suite",
        fixed=True,
    )
    env_kwargs: dict[str, Any] | None = option(
        None,
        "arguments of the environment or factory, as YAML or JSON: '{\"healthy_reward\": 0}'",
        fixed=True,
    )
    env_wrapper: tuple[str | Callable[[Any], Any], ...] | None = option(
        None,
        "module:Wrapper that is put around every environment, Gymnasium's or a transform of "
        "TorchRL's; of several the first one is innermost",
        fixed=True,
    )
    env_source: Literal["gymnasium", "envpool"] = option(
        "gymnasium",
        "who runs an environment that has a name: Gymnasium, or EnvPool, whose threads are faster "
        "on the tasks that it has (seeds give other initial states there)",
        choices=("gymnasium", "envpool"),
        fixed=True,
    )
    max_episode_steps: int | None = option(
        None,
        "steps after which an episode is cut off (default: the environment's own limit)",
        valid=at_least(1),
    )
    observation_keys: tuple[str, ...] | None = option(
        None,
        "entries of a dictionary observation that the networks read, such as body.speed (default: "
        "every vector of floating-point numbers)",
        fixed=True,
    )
    frame_stack: int = option(
        1,
        "how many of the last observations the networks read at once",
        valid=at_least(1),
        fixed=True,
    )
    action_chunk: int = option(
        1,
        "how many actions the policy plans at once, which are executed one by one; rewards inside "
        "of a chunk are discounted, and frames stay steps of the environment",
        valid=at_least(1),
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
    init_from: str | None = option(
        None,
        "run, or checkpoint of one, whose networks this run starts with: the policy, and with the "
        "same method its critics; optimisers and counters start anew",
    )
    policy_starts: int = option(
        0,
        "environment steps (all ranks) before the policy is trained; until then critics learn what "
        "it is worth, which those of a policy that was cloned, or of another method, do not know",
        valid=at_least(0),
    )
    eval_every: int = option(
        10_000, "environment steps (all ranks) between evaluations", valid=at_least(1)
    )
    eval_episodes: int = option(10, "episodes of an evaluation", valid=at_least(1))
    eval_env: Literal["own", "training"] = option(
        "own",
        "environments of evaluations: own ones, which are built when the first is due (where the "
        "simulator runs only once, those of the training take their place), or those of the "
        "training, whose episodes go on afterwards; needs --collector local",
        choices=("own", "training"),
    )
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
        "where metrics go besides metrics.csv, which is always there",
        choices=("csv", "tensorboard", "wandb"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_named()
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

        if self.eval_env == "training" and self.collector != "local":
            raise ValueError(
                f"--eval-env training needs --collector local, got --collector {self.collector}."
            )
        self._check_workers()

    def _check_named(self) -> None:
        """Refuse what stands for a Python object that a checkpoint or a file could not hold."""
        for field in fields_of(type(self)):
            described = unnamed(getattr(self, field.name))
            if described is not None:
                flag = flag_name(field.name)
                raise ValueError(
                    f"{flag} was a Python object without a name ({described}), which no file "
                    "holds, so the command line cannot go on with this run: give it from Python "
                    f"again, in the configuration with resume=..., or move it to a module and give "
                    f"{flag} module:Name."
                )

    @property
    def env_name(self) -> str:
        """What messages, titles and folders call the environment."""
        return shown(self.env)

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
