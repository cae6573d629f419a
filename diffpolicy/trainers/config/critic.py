"""Options of value functions and Q networks."""

import math
from typing import Literal

from diffpolicy.trainers.config.options import (
    Options,
    above,
    at_least,
    between,
    configuration,
    flag_name,
    option,
)

_BINS = 101
_HEADS_WITH_BINS = ("categorical", "hl_gauss")


@configuration()
class CriticOptions(Options):
    """The critic's networks."""

    critic_hidden_sizes: tuple[int, ...] = option(
        (64, 64),
        "widths of the hidden layers of each critic",
        valid=at_least(1),
        fixed=True,
    )


@configuration()
class QCriticOptions(CriticOptions):
    """Ensembles of Q networks."""

    num_qvalue_nets: int = option(2, "number of Q networks", valid=at_least(1), fixed=True)
    critic_normalization: Literal["batch", "layer", "none"] = option(
        "none",
        "normalisation inside the Q networks: batch renormalisation, layer normalisation or none",
        choices=("batch", "layer", "none"),
        fixed=True,
    )
    value_scale: float | None = option(
        None,
        "factor on the outputs of scalar Q networks, so that values of normalised rewards are not "
        "moved too far by one step of Adam (default: 1/32 with --normalize-rewards, else 1)",
        valid=above(0),
        fixed=True,
    )


@configuration()
class QReductionOptions(QCriticOptions):
    """Values of the ensemble."""

    critic_reduction: Literal["mean", "min"] = option(
        "mean", "mean or minimum over the Q networks", choices=("mean", "min")
    )


@configuration()
class CriticLossOptions(Options):
    """The critic's loss."""

    critic_coeff: float = option(1.0, "weight of the critic loss", valid=at_least(0))
    loss_critic_type: Literal["smooth_l1", "l2", "l1"] = option(
        "l2",
        "distance between scalar values and their targets",
        choices=("smooth_l1", "l2", "l1"),
    )


@configuration()
class CriticHeadOptions(Options):
    """What the critic predicts."""

    critic_head: Literal["scalar", "categorical", "hl_gauss", "gaussian"] = option(
        "scalar",
        "a number, the distribution of returns on atoms (C51), a number as a histogram of bins "
        "(HL-Gauss), or the mean and standard deviation of returns",
        choices=("scalar", "categorical", "hl_gauss", "gaussian"),
        fixed=True,
    )
    value_range: tuple[float, float] | None = option(
        None,
        "range of the atoms or bins (default: that of the task where its rewards are known to be "
        "bounded; the method may know another one)",
        metavar=("MIN", "MAX"),
        fixed=True,
    )
    bins: int | None = option(
        None, f"number of atoms or bins (default: {_BINS})", valid=at_least(2), fixed=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_head in _HEADS_WITH_BINS:
            if self.bins is None:
                # A resumed run compares the number itself.
                object.__setattr__(self, "bins", _BINS)
            _check_range(self.value_range)
            return
        heads = " or ".join(
            name for name in self.choices_of("critic_head") if name in _HEADS_WITH_BINS
        )
        for name in ("value_range", "bins"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{flag_name(name)} is for --critic-head {heads}; leave one of them out."
                )


def _check_range(given: tuple[float, float] | None) -> None:
    if given is None:
        return
    low, high = given
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"--value-range must be a smaller and a greater number, got {low:g} {high:g}."
        )


@configuration()
class TargetNetworkOptions(Options):
    """Target networks."""

    tau: float = option(
        0.005, "how far the target networks move at every update", valid=between(0, 1)
    )


@configuration()
class DelayedCriticOptions(TargetNetworkOptions):
    """Whether there are target networks."""

    delay_critic: bool = option(
        False, "take next values from target networks; needs --critic-normalization layer or none"
    )


@configuration()
class QHeadOptions(QReductionOptions, CriticHeadOptions):
    """Ensembles of Q networks with any head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_head != "scalar" and self.value_scale not in (None, 1.0):
            raise ValueError(
                f"--value-scale {self.value_scale:g} is for --critic-head scalar; leave one of "
                "them out."
            )
