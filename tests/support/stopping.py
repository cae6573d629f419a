"""Signals that end a run, but for those that whoever started the tests ignores (nohup does)."""

import signal

#: A run leaves ignored signals ignored.
STOPPING = [
    number
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    if signal.getsignal(number) is not signal.SIG_IGN
]
