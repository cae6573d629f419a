"""Options of the entropy's weight."""

from diffpolicy.trainers.config.options import (
    Options,
    above,
    at_least,
    configuration,
    finite,
    option,
)


@configuration()
class FixedTemperatureOptions(Options):
    """The temperature."""

    temperature: float = option(
        0.01,
        "weight of the entropy against (normalised) rewards, at the start if it is learned, which "
        "lasts until a reward differs from zero; 0 is plain reward maximisation",
        valid=at_least(0),
        fixed=True,
    )


@configuration()
class LearnableTemperatureOptions(FixedTemperatureOptions):
    """The temperature, and whether it is learned."""

    learn_temperature: bool = option(
        True, "learn the temperature, so that the entropy comes to --target-entropy", fixed=True
    )
    lr_temperature: float | None = option(
        None,
        "learning rate of a learned temperature, which 0 keeps (default: that of the policy)",
        valid=at_least(0),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_temperature and self.temperature == 0:
            raise ValueError(
                f"--temperature must be greater than 0 to be learned, got {self.temperature}; give "
                "--no-learn-temperature to fix it."
            )


@configuration()
class EntropyRegulatorOptions(Options):
    """Noise that follows the entropy of actions."""

    noise_scale: float = option(
        0.1,
        "alpha times it is the standard deviation of the noise on actions in training, in [-1, 1] "
        "units",
        valid=at_least(0),
    )
    temperature: float = option(3.0, "alpha at the start", valid=above(0), fixed=True)
    lr_temperature: float | None = option(
        0.03,
        "learning rate of alpha, in logarithms, which 0 keeps; None is that of the policy",
        valid=at_least(0),
    )
    target_entropy: float = option(
        -0.9,
        "target of the entropy of actions that are executed, in [-1, 1] units, for each action "
        "dimension",
        valid=finite(),
    )
    entropy_interval: int = option(
        250, "alpha moves, and the entropy is measured, once in so many updates", valid=at_least(1)
    )
    entropy_actions: int = option(
        200, "actions in each state of a batch by which the entropy is measured", valid=at_least(3)
    )
    noise_in_updates: bool = option(
        False, "whether actions in the losses carry the noise, as well as executed ones"
    )


@configuration()
class TemperatureOptions(LearnableTemperatureOptions):
    """The temperature.

    The target of a learned temperature counts per action dimension, whatever the method. Which
    entropy it is compared with is the method's: the chain's bound without the constant of the prior
    (and, for DiffPPO, DiffWPO and latent DiffSAC, without the squashing), or that of a Gaussian.
    """

    target_entropy: float = option(
        -1.0,
        "target of a learned temperature: the entropy, or the bound of the chain's entropy without "
        "the prior's term, for each action dimension",
        valid=finite(),
    )
