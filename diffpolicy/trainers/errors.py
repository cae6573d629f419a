"""What can go wrong while training, other than programming errors."""


class TrainingError(RuntimeError):
    """Training cannot go on, for a reason that the message tells in one sentence."""


class RunFinishedError(Exception):
    """``--resume last`` was given for a run whose environment steps are used up."""
