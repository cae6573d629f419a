"""What can go wrong while training, other than programming errors."""


class TrainingError(RuntimeError):
    """Training cannot go on, for a reason that the message tells in one sentence."""
