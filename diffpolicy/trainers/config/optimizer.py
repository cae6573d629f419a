"""Options of optimisers."""

from diffpolicy.trainers.config.options import Options, above, between, configuration, option


@configuration()
class OptimizerOptions(Options):
    """Adam."""

    adam_beta1: float = option(
        0.9, "first coefficient of Adam for policy and critics", valid=between(0, 0.999)
    )
    adam_eps: float = option(
        1e-8, "number that Adam adds to the root of its second moment", valid=above(0)
    )
