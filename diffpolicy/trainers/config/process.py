"""Options of denoising processes."""

from typing import Literal

from diffpolicy.sde import NOISE_SCHEDULES, SCHEDULES
from diffpolicy.trainers.config.options import (
    Options,
    above,
    at_least,
    configuration,
    option,
)


@configuration()
class ProcessOptions(Options):
    """The denoising chain."""

    denoising_steps: int = option(4, "steps of the denoising chain", valid=at_least(1), fixed=True)
    prior_std: float = option(
        0.4, "standard deviation of the chain's prior", valid=above(0), fixed=True
    )
    step_schedule: str = option(
        "linear", "step sizes along the chain", choices=tuple(sorted(SCHEDULES)), fixed=True
    )
    step_size: float = option(0.08, "initial step size of the chain", valid=above(0), fixed=True)
    step_size_per_step: bool = option(
        False, "learn a step size for each denoising step instead of one factor", fixed=True
    )
    learn_step_size: bool = option(True, "train the step size", fixed=True)
    friction: float = option(1.0, "initial friction of the chain", valid=above(0), fixed=True)
    learn_friction: bool = option(True, "train the friction", fixed=True)


@configuration()
class ChainLengthOptions(Options):
    """A chain of whatever process."""

    denoising_steps: int = option(5, "steps of the denoising chain", valid=at_least(1), fixed=True)


@configuration()
class DiffusionOptions(Options):
    """The noise of a variance-preserving diffusion."""

    noise_schedule: str = option(
        "cosine",
        "levels of noise along the chain",
        choices=tuple(sorted(NOISE_SCHEDULES)),
        fixed=True,
    )


@configuration()
class DenoisingMDPOptions(ProcessOptions):
    """Training on the steps of the chain."""

    discount_mode: Literal["env", "denoising_step"] = option(
        "env",
        "whether discounts act per environment step or per denoising step",
        choices=("env", "denoising_step"),
    )


@configuration()
class OnPolicyChainOptions(DenoisingMDPOptions):
    """Learning the process on-policy."""

    initial_noise_scale: float | None = option(
        None,
        "factor on the noise of the chain's steps at the start (default: 1)",
        valid=above(0),
    )
    final_noise_scale: float = option(
        1.0,
        "what that factor becomes until the end of the run, as the learning rate falls to zero "
        "(with --lr-schedule constant it stays as it is)",
        valid=above(0),
    )

    lr_process: float | None = option(
        None,
        "learning rate of step size and friction, which 0 keeps (default: three times --lr)",
        valid=at_least(0),
    )

    @property
    def first_noise_scale(self) -> float:
        """The factor on the noise at the start."""
        return 1.0 if self.initial_noise_scale is None else self.initial_noise_scale
