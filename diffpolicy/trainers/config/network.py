"""Options of policy networks."""

from diffpolicy.trainers.config.options import Options, at_least, configuration, option


@configuration()
class NetworkOptions(Options):
    """The policy's network."""

    actor_hidden_sizes: tuple[int, ...] = option(
        (64, 64),
        "width of a hidden layer of the policy's (or score) network; repeat the flag for each "
        "layer",
        valid=at_least(1),
        fixed=True,
    )
