"""Signals of consoles and schedulers, as requests that a run polls."""

import mmap
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A cluster sends SIGTERM before it takes a machine away, Slurm also SIGUSR1 if it is told to
# (``--signal=USR1@300``), and a terminal SIGHUP when it is closed.
_TERMINATIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopSignal:
    """What signals ask of a run, which polls it; shared by the processes of a run.

    The first SIGINT (Ctrl-C), and SIGTERM, SIGUSR1 and SIGHUP however often they come, ask the run
    to stop after the current iteration; SIGUSR2 asks for a checkpoint after it. A second SIGINT
    raises KeyboardInterrupt as usual. Processes forked inside :meth:`installed` share the requests.
    There the second SIGINT raises RuntimeError: torch ends a forked process without a word on
    KeyboardInterrupt, and its parent would wait for a result for ever.
    """

    def __init__(self) -> None:
        # How often SIGINT has come, up to two; whether a termination has; how often SIGUSR2 has,
        # modulo 256.
        self._requests = mmap.mmap(-1, 3)
        self._count = 0
        self._checkpoints = 0
        self._process = os.getpid()

    def requested(self) -> bool:
        """Whether any process has been asked to stop."""
        return self.interrupted() or self._requests[1] > 0

    def forced(self) -> bool:
        """Whether any process has been told by SIGINT a second time."""
        return self._requests[0] > 1

    def interrupted(self) -> bool:
        """Whether it was Ctrl-C, on one of these processes, that has asked."""
        return self._requests[0] > 0

    def checkpoint_requested(self) -> bool:
        """Whether any process has been asked for a checkpoint since the last one was begun."""
        return self._requests[2] != self._checkpoints

    def begin_checkpoint(self) -> None:
        """Take the requests so far, in this process, for answered by a checkpoint that begins."""
        self._checkpoints = self._requests[2]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the context; no effect outside the main thread.

        One that the process was started to ignore (``nohup`` does so with SIGHUP) is left alone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = dict.fromkeys(_TERMINATIONS, self._on_termination)
        handlers |= {signal.SIGINT: self._on_interrupt, signal.SIGUSR2: self._on_checkpoint}
        previous = {
            number: signal.signal(number, handler)
            for number, handler in handlers.items()
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, before in previous.items():
                signal.signal(number, before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self._requests[0] = max(self._requests[0], min(self._count, 2))
        if self._count > 1:
            raise KeyboardInterrupt if os.getpid() == self._process else RuntimeError("interrupted")

    def _on_termination(self, number: int, frame: FrameType | None) -> None:
        self._requests[1] = 1

    def _on_checkpoint(self, number: int, frame: FrameType | None) -> None:
        self._requests[2] = (self._requests[2] + 1) % 256
