"""What environments can do that nothing can be learned from."""

import traceback


class NonFiniteError(ValueError):
    """An environment or a policy has written NaN or infinite numbers."""


class UnfinishedEpisodeError(RuntimeError):
    """An evaluation's episode does not come to an end."""


class CollectionError(RuntimeError):
    """An environment or a policy has raised; the message holds the traceback."""


class WorkerError(CollectionError):
    """A worker process has raised or died; the message holds its traceback or exit code."""


class UnsupportedStateError(ValueError):
    """The state of an environment or a collector cannot be saved, or does not fit."""


def describe(error: BaseException) -> str:
    """What an exception says, in one line, and its traceback in those that follow."""
    summary = f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"{summary}\n{''.join(traceback.format_exception(error)).strip()}"
