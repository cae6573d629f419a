"""Configurations of on-policy methods; as in config.py, every field is a command line flag."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from diffpolicy.trainers.config.options import above, at_least, changed, finite, option
from diffpolicy.trainers.config.process import ChainOptions
from diffpolicy.trainers.config.run import OnPolicyConfig, PPOConfig

_CHAIN_ROWS = (*OnPolicyConfig.row_options, "denoising_steps")


@dataclass(frozen=True)
class GaussianPPOConfig(PPOConfig):
    """The Gaussian baseline: TorchRL's clipped PPO."""

    method: ClassVar[str] = "gaussian_ppo"

    entropy_coeff: float = option(0.0, "weight of the entropy bonus", valid=at_least(0))


@dataclass(frozen=True)
class DiffPPOConfig(ChainOptions, PPOConfig):
    """DiffPPO: PPO on the steps of a denoising chain."""

    method: ClassVar[str] = "diffppo"
    row_options: ClassVar[tuple[str, ...]] = _CHAIN_ROWS

    temperature: float = option(
        0.0, "weight of the entropy bound; 0 is plain reward maximisation", valid=at_least(0)
    )
    target_entropy: float | None = option(
        None,
        "learn the temperature, which starts at --temperature, such that the entropy bound comes "
        "to this (default: the temperature is fixed)",
        valid=finite(),
        fixed=True,
    )
    value_support: tuple[float, float, float] | None = option(
        None,
        "range and number of bins of an HL-Gauss critic, which does without --loss-critic-type "
        "(default: a scalar critic)",
        metavar=("MIN", "MAX", "BINS"),
        fixed=True,
    )
    advantage_normalization: Literal["center", "standardize"] = option(
        "standardize",
        "what is done to the advantages of a minibatch",
        choices=("center", "standardize"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_entropy is not None and self.temperature == 0:
            raise ValueError(
                f"--temperature must be greater than 0 to be learned (--target-entropy "
                f"{self.target_entropy}), got {self.temperature}."
            )
        _check_value_support(self.value_support)
        if self.value_support is not None and self.clip_value is not None:
            raise ValueError(
                f"--clip-value {self.clip_value} cannot be combined with --value-support; leave "
                "one of them out."
            )


@dataclass(frozen=True)
class WPOConfig(OnPolicyConfig):
    """Wasserstein policy optimisation: the policy follows the action gradient of Q networks."""

    max_grad_norm: float = changed(
        OnPolicyConfig,
        "max_grad_norm",
        0.5,
        "limit of the gradient norm of the policy, and separately of that of the Q networks",
    )
    temperature: float = option(
        0.01,
        "weight of the entropy, at the start if it is learned",
        valid=above(0),
        fixed=True,
    )
    learn_temperature: bool = option(True, "learn the temperature", fixed=True)
    target_entropy: float = option(
        -1.0,
        "target of a learned temperature: the entropy before squashing, for each action dimension",
        valid=finite(),
    )
    temperature_lr_multiplier: float = option(
        1.0, "factor on the learning rate of a learned temperature", valid=at_least(0)
    )
    kl_bound: float = option(
        0.02,
        "trust region: rows on which the policy has moved further than this (in nats, from the "
        "policy that collected them) pull it back",
        valid=above(0),
    )
    initial_multiplier: float = option(
        0.3, "initial weight of that pull, which is learned", valid=above(0), fixed=True
    )
    multiplier_lr_multiplier: float = option(
        10.0, "factor on the learning rate of that weight", valid=at_least(0)
    )
    kl_samples: int | None = option(
        None,
        "estimate the distance of the trust region from this many samples (default: exact)",
        valid=at_least(1),
    )
    precondition: bool = option(
        False, "multiply the gradient of the policy by its variance, as the first WPO did"
    )
    value_support: tuple[float, float, float] | None = option(
        None,
        "range and number of bins of HL-Gauss Q networks, which do without --loss-critic-type "
        "(default: scalar ones)",
        metavar=("MIN", "MAX", "BINS"),
        fixed=True,
    )
    num_critics: int = option(2, "number of Q networks", valid=at_least(1), fixed=True)
    critic_hidden_size: int = option(
        64, "width of the two hidden layers of a Q network", valid=at_least(1), fixed=True
    )
    critic_normalization: Literal["layer", "none"] = option(
        "none", "normalisation inside the Q networks", choices=("layer", "none"), fixed=True
    )
    critic_reduction: Literal["mean", "min"] = option(
        "mean", "mean or minimum over the Q networks", choices=("mean", "min")
    )
    critic_coeff: float = option(1.0, "weight of the critic loss", valid=at_least(0))
    loss_critic_type: Literal["smooth_l1", "l2", "l1"] = option(
        "l2", "distance between values and their targets", choices=("smooth_l1", "l2", "l1")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_value_support(self.value_support)


@dataclass(frozen=True)
class GaussianWPOConfig(WPOConfig):
    """The Gaussian baseline: WPO with a scale that does not depend on the observation."""

    method: ClassVar[str] = "gaussian_wpo"

    initial_std: float = option(
        1.0, "initial standard deviation before squashing", valid=above(0), fixed=True
    )


@dataclass(frozen=True)
class DiffWPOConfig(ChainOptions, WPOConfig):
    """DiffWPO: WPO on the steps of a denoising chain."""

    method: ClassVar[str] = "diffwpo"
    row_options: ClassVar[tuple[str, ...]] = _CHAIN_ROWS

    target_entropy: float = option(
        -8.0,
        "target of a learned temperature: the entropy bound without the prior's term, for each "
        "action dimension",
        valid=finite(),
    )
    step_size_per_step: bool = option(
        True, "learn a step size for each denoising step instead of one factor", fixed=True
    )
    learn_friction: bool = option(False, "train the friction", fixed=True)


def _check_value_support(support: tuple[float, float, float] | None) -> None:
    """Raise ValueError unless this is a range and a number of bins."""
    if support is None:
        return
    low, high, bins = support
    sound = math.isfinite(low) and math.isfinite(high) and low < high
    if not (sound and bins >= 2 and float(bins).is_integer()):
        raise ValueError(
            "--value-support must be a smaller and a greater number and a whole number of bins "
            f"from 2 on, got {low} {high} {bins}."
        )
