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

from diffpolicy.trainers.io.random_state import restored_random_state

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


class StopSignal:
    """Ctrl-C and SIGTERM as requests that the run polls, shared by the processes of a run.

    The first of them asks the run to stop after the current iteration. Clusters send SIGTERM before
    they take a machine away; more of them change nothing. A second SIGINT raises KeyboardInterrupt
    as usual. Processes forked inside :meth:`installed` share the requests. There the second SIGINT
    raises RuntimeError: torch ends a forked process without a word on KeyboardInterrupt, and its
    parent would wait for a result for ever.
    """

    def __init__(self) -> None:
        # How often SIGINT has come, up to two, and whether SIGTERM has.
        self._requests = mmap.mmap(-1, 2)
        self._count = 0
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

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle both signals inside the context; no effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGINT: self._on_interrupt, signal.SIGTERM: self._on_termination}
        previous = {number: signal.signal(number, on) for number, on in handlers.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self._requests[0] = max(self._requests[0], min(self._count, 2))
        if self._count > 1:
            raise KeyboardInterrupt if os.getpid() == self._process else RuntimeError("interrupted")

    def _on_termination(self, number: int, frame: FrameType | None) -> None:
        self._requests[1] = 1


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
        stack.enter_context(torch.random.fork_rng([] if on_cpu else [device]))
        stack.enter_context(restored_random_state())
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
