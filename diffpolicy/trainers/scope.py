"""Process-wide settings that last for one run and are restored afterwards."""

import logging
import mmap
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch

from collectors.randomness import restored_random_state

_QUIET_LOGGERS = (
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "torchrl",
    "torch.multiprocessing",
)
# Modules whose warnings are about their own internals, not about anything a user of a script can
# change: deprecations between the pinned packages, advice on data loader workers.
_QUIET_MODULES = r"(lightning|torchrl|tensordict|torch|multiprocessing|tensorboard)(\.|$)"


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


@contextmanager
def run_scope(device: torch.device) -> Iterator[None]:
    """Quiet the frameworks and, when training on the CPU, use one thread for each rank.

    The environment, log levels, warning filters, random state, number of threads and the choice of
    deterministic kernels are restored.
    """
    on_cpu = device.type == "cpu"
    with ExitStack() as stack:
        stack.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        stack.enter_context(_restored_environment())
        stack.enter_context(_quiet_logging())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=_QUIET_MODULES)
        # Touching CUDA here would keep the ranks of a CPU run from being forked.
        stack.enter_context(restored_random_state([] if on_cpu else [device]))
        if on_cpu:
            stack.enter_context(_one_thread())
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Otherwise Lightning gives each forked rank several threads, which can hang after a fork.
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _restored_environment() -> Iterator[None]:
    saved = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _QUIET_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
