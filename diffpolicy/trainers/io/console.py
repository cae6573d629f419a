"""The console: lines that get along with the progress bar, and a console that may be anything.

A console may know ASCII only, be a pipe that nobody reads any more, a file on a full disk, closed,
or not there at all. None of these is a reason to end a run: what cannot be shown is lost, and
everything that matters is in the files of the run.
"""

import os
import sys
from contextlib import suppress
from typing import Any, Literal

from tqdm import tqdm

from diffpolicy.trainers.io.cluster import is_first_process

_IN_ASCII = str.maketrans({"±": "+-"})


class Stream:
    """``sys.stdout`` or ``sys.stderr``, whatever it is at the moment, without its faults.

    Args:
        name: which of them.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name

    @property
    def encoding(self) -> str:
        """The encoding of the stream; it tells the progress bar which characters it may use."""
        return getattr(self._stream, "encoding", None) or "ascii"

    @property
    def _stream(self) -> Any:
        """None in a process without a console."""
        return getattr(sys, self._name)

    def write(self, text: str) -> None:
        """Write what the stream takes; characters that it does not know are replaced."""
        with suppress(OSError, ValueError, AttributeError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                known = text.translate(_IN_ASCII).encode(self.encoding, "replace")
                self._stream.write(known.decode(self.encoding))

    def flush(self) -> None:
        """Hand over what has been written."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether somebody is watching."""
        with suppress(ValueError, AttributeError):
            return bool(self._stream.isatty())
        return False

    def fileno(self) -> int:
        """The descriptor of a terminal with a width, which the progress bar asks for.

        Raises:
            OSError: it is no terminal, or one that does not know how wide it is.
        """
        with suppress(ValueError, AttributeError):
            number = int(self._stream.fileno())
            if os.get_terminal_size(number).columns:
                return number
        raise OSError("no terminal with a width")

    def settle(self) -> None:
        """Write what waits, or drop it: Python itself would fail on it when the process ends."""
        try:
            self._stream.flush()
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        except (ValueError, AttributeError):
            # Closed, or not there.
            pass


STDOUT = Stream("stdout")
STDERR = Stream("stderr")


def say(text: str) -> None:
    """Print a line on stdout, above the progress bar, once for all processes of a run."""
    if is_first_process():
        _line(STDOUT, text)


def note(text: str) -> None:
    """Print a line about the run on stderr, once for all processes of a run."""
    if is_first_process():
        _line(STDERR, text)


def warn(text: str) -> None:
    """Print ``warning: text`` as one line on stderr, once for all processes of a run.

    Forked ranks cannot be told apart here: only rank zero should call it.
    """
    if is_first_process():
        _line(STDERR, f"warning: {' '.join(text.split())}")


def fail(text: str) -> None:
    """Print a line on stderr, from any process: it may be the only one that knows why."""
    _line(STDERR, text)


def _line(stream: Stream, text: str) -> None:
    with tqdm.external_write_mode(file=STDERR):
        stream.write(f"{text}\n")
        stream.flush()
