"""Lines on the console that get along with the progress bar and with a full disk."""

import sys
from contextlib import suppress

from tqdm import tqdm

from diffpolicy.trainers.io.cluster import is_first_process


def say(text: str) -> None:
    """Print a line on stdout, once for all processes of a run."""
    if is_first_process():
        with suppress(OSError):
            print(text)


def warn(text: str) -> None:
    """Print ``warning: text`` as one line on stderr, once for all processes of a run.

    Forked ranks cannot be told apart here: only rank zero should call it.
    """
    if is_first_process():
        # The console may be a file on a full disk, which is no reason to end a run.
        with suppress(OSError):
            tqdm.write(f"warning: {' '.join(text.split())}", file=sys.stderr)
