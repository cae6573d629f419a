"""Options of the entropy's weight."""

from diffpolicy.trainers.config.options import Options, at_least, configuration, finite, option


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
