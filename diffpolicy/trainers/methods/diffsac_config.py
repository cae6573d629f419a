"""The configuration of DiffSAC."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from diffpolicy.trainers.config.off_policy import ChainConfig, check_value_range
from diffpolicy.trainers.config.options import at_least, changed, option
from diffpolicy.trainers.config.process import ChainOptions

_BINS = 101


@dataclass(frozen=True)
class DiffSACConfig(ChainConfig):
    """DiffSAC: soft actor-critic on the steps of a denoising chain."""

    method: ClassVar[str] = "diffsac"

    denoising_steps: int = changed(ChainConfig, "denoising_steps", 4)
    prior_std: float = changed(ChainConfig, "prior_std", 0.4)
    step_schedule: str = changed(ChainConfig, "step_schedule", "linear")
    step_size: float = changed(ChainConfig, "step_size", 0.08)
    temperature: float = changed(ChainConfig, "temperature", 0.1)
    target_entropy: float = changed(ChainConfig, "target_entropy", -2.0)
    learn_step_size: bool = changed(ChainOptions, "learn_step_size", True)
    step_size_per_step: bool = changed(ChainOptions, "step_size_per_step", False)
    friction: float = changed(ChainOptions, "friction", 1.0)
    learn_friction: bool = changed(ChainOptions, "learn_friction", True)
    discount_mode: Literal["env", "denoising_step"] = changed(ChainOptions, "discount_mode", "env")
    squashed_entropy: bool = option(
        True,
        "measure the entropy of the action; otherwise that of the latent before squashing, as "
        "published",
        fixed=True,
    )
    fresh_chains: bool = option(
        True,
        "train on chains of the current policy; of those that acted only the last steps remain",
    )
    center_entropy: bool | None = option(
        None,
        "count entropies in values from the target of a learned temperature on (default: if the "
        "temperature is learned)",
    )
    sampled_steps: int = option(
        1, "denoising steps of each transition that an update trains on", valid=at_least(1)
    )
    target_steps: int | None = option(
        None,
        "denoising steps that a target simulates before it bootstraps (default: whole chains)",
        valid=at_least(1),
    )
    critic_head: Literal["scalar", "hl_gauss"] = option(
        "scalar", "what the critics predict", choices=("scalar", "hl_gauss"), fixed=True
    )
    value_range: tuple[float, float] | None = option(
        None,
        "range of the bins of --critic-head hl_gauss (default: that of the task where its rewards "
        "are known to be bounded)",
        metavar=("MIN", "MAX"),
        fixed=True,
    )
    bins: int | None = option(
        None,
        f"bins of --critic-head hl_gauss (default: {_BINS})",
        valid=at_least(2),
        fixed=True,
    )
    critic_normalization: Literal["batch", "layer", "none"] = changed(
        ChainConfig, "critic_normalization", "layer"
    )
    delay_critic: bool = changed(ChainConfig, "delay_critic", True)
    tau: float = changed(ChainConfig, "tau", 0.05)
    critic_reduction: Literal["mean", "min"] = option(
        "min", "mean or minimum over the critics", choices=("mean", "min")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sampled_steps", "target_steps"):
            if (getattr(self, name) or 1) > self.denoising_steps:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at most --denoising-steps "
                    f"{self.denoising_steps}, got {getattr(self, name)}."
                )
        hl_gauss = self.critic_head == "hl_gauss"
        check_value_range(self.value_range, "--critic-head hl_gauss", has_range=hl_gauss)
        if hl_gauss and self.bins is None:
            # A resumed run compares the number itself.
            object.__setattr__(self, "bins", _BINS)
        if self.bins is not None and not hl_gauss:
            raise ValueError("--bins is for --critic-head hl_gauss; leave one of them out.")
        if self.center_entropy and not self.learn_temperature:
            raise ValueError(
                "--center-entropy is for a learned temperature, whose target it subtracts; leave "
                "it out, or --no-learn-temperature."
            )

    @property
    def centers_entropy(self) -> bool:
        """Whether entropies in values count from the target of the temperature on."""
        return self.learn_temperature and self.center_entropy is not False
