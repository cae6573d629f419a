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
    """Ctrl-C as a request that the run polls, shared by the processes of a run.

    The first SIGINT asks the run to stop after the current iteration; the second one raises
    KeyboardInterrupt as usual. Processes forked inside :meth:`installed` share the request. There
    the second one raises RuntimeError: torch ends a forked process without a word on
    KeyboardInterrupt, and its parent would wait for a result for ever.
    """

    def __init__(self) -> None:
        self._requested = mmap.mmap(-1, 1)
        self._count = 0
        self._process = os.getpid()

    def requested(self) -> bool:
        """Whether any process has been asked to stop."""
        return self._requested[0] != 0

    def forced(self) -> bool:
        """Whether any process has been told a second time."""
        return self._requested[0] > 1

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT inside the context; no effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self._requested[0] = max(self._requested[0], min(self._count, 2))
        if self._count > 1:
            raise KeyboardInterrupt if os.getpid() == self._process else RuntimeError("interrupted")


@contextmanager
def run_scope(device: torch.device) -> Iterator[None]:
    """Quiet the frameworks and, when training on the CPU, use one thread for each rank.

    The environment, log levels, warning filters, random state and number of threads are restored.
    """
    on_cpu = device.type == "cpu"
    with ExitStack() as stack:
        stack.enter_context(_restored_environment())
        stack.enter_context(_quiet_logging())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=_QUIET_MODULES)
        # Touching CUDA here would keep the ranks of a CPU run from being forked.
        stack.enter_context(torch.random.fork_rng([] if on_cpu else [device]))
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
