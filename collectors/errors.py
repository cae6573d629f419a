"""What environments can do that nothing can be learned from."""


class NonFiniteError(ValueError):
    """An environment or a policy has written NaN or infinite numbers."""


class UnfinishedEpisodeError(RuntimeError):
    """An evaluation's episode does not come to an end."""
