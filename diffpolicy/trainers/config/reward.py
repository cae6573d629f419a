"""Options of the rewards that are trained on."""

from diffpolicy.trainers.config.options import Options, above, configuration, option


@configuration()
class RewardOptions(Options):
    """The unit of rewards."""

    normalize_rewards: bool = option(
        True,
        "divide rewards by the running size of the discounted return, so that values are of the "
        "order of one on every task, and temperatures and ranges of values mean the same",
        fixed=True,
    )
    reward_scale: float = option(
        1.0,
        "factor on the rewards that are trained on, for --no-normalize-rewards",
        valid=above(0),
        fixed=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize_rewards and self.reward_scale != 1:
            raise ValueError(
                f"--reward-scale {self.reward_scale:g} changes nothing about normalised rewards; "
                "leave it out, or add --no-normalize-rewards."
            )
