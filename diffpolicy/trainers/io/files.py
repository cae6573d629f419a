"""Files of a run, besides those that :mod:`diffpolicy.files` writes and names for policies, too."""

from collections.abc import Callable

from diffpolicy.files import (
    CHECKPOINT_FOLDER,
    CHECKPOINT_KEY,
    LAST_CHECKPOINT,
    PLOT_FILE,
    RESULTS_FILE,
    read_plain,
    versions,
    write_atomically,
    write_json,
    write_plain,
    write_text,
)
from diffpolicy.trainers.io.console import warn

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
TIMING_FILE = "timing.csv"
# The value of --resume that stands for the newest checkpoint in --output.
NEWEST = "last"

__all__ = [
    "CHECKPOINT_FOLDER",
    "CHECKPOINT_KEY",
    "CONFIG_FILE",
    "LAST_CHECKPOINT",
    "METRICS_FILE",
    "NEWEST",
    "PLOT_FILE",
    "RESULTS_FILE",
    "TIMING_FILE",
    "Disk",
    "numbered_name",
    "read_plain",
    "versions",
    "write_atomically",
    "write_json",
    "write_plain",
    "write_text",
]


class Disk:
    """Where a run writes to: a full disk costs files, not the run.

    The first write that fails is reported in one line; further ones are left out quietly, and each
    file is tried again when it is due the next time.
    """

    def __init__(self) -> None:
        self._reported = False

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Call ``write`` and return whether it worked; an OSError is reported, naming ``what``."""
        try:
            write()
        except OSError as error:
            self.report(what, str(error))
            return False
        return True

    def report(self, what: str, error: str) -> None:
        """Print what could not be written, the first time."""
        if not self._reported:
            self._reported = True
            warn(
                f"{what} could not be written: {error}. Training goes on, and files are tried "
                "again when they are due the next time."
            )


def numbered_name(frames: int) -> str:
    """The name, without its ending, of the checkpoint after ``frames`` environment steps."""
    return f"frames_{frames:010d}"
