"""Process-wide settings that last for one run and are restored afterwards."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

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
