"""Signals that the process which trains answers, and that its workers outlive."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C, a cluster's SIGTERM, the end of a terminal, and what Slurm's --signal is told to send
# reach every process of a job.
OUTLIVED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Ctrl-C must be able to end the start of workers that hang.
_BLOCKED = frozenset(OUTLIVED) - {signal.SIGINT}


def outlive_signals() -> None:
    """Do nothing on these signals from now on; for a worker, once it has started.

    The process that trains decides when to stop; its workers end with it, because their pipe to it
    is closed. Handlers, unlike SIG_IGN, are not inherited by programs that an environment starts.
    """
    for number in OUTLIVED:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start processes that these signals do not end before they can handle them.

    Signals to this process wait until the end of the context. No effect outside the main thread,
    which is the one that handles signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
