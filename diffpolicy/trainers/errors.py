"""What can go wrong while training, other than programming errors."""

from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException


class TrainingError(RuntimeError):
    """Training cannot go on, for a reason that the message tells in one sentence."""


class RunFinishedError(Exception):
    """``--resume last`` was given for a run whose environment steps are used up."""


def training_error(error: BaseException) -> str | None:
    """The message of a TrainingError, or about a forked rank that failed; None for other errors."""
    if isinstance(error, TrainingError):
        return str(error).strip()
    if isinstance(error, ProcessExitedException):
        end = error.signal_name or f"exit code {error.exit_code}"
        return f"rank {error.error_index} has ended with {end} (SIGKILL is often a lack of memory)."
    # A forked rank hands over its traceback as text, which ends with the message.
    marker = f"{TrainingError.__qualname__}: "
    if isinstance(error, ProcessRaisedException) and marker in str(error):
        return str(error).rpartition(marker)[2].strip()
    return None
