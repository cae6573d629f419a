import logging
import os
import signal
import threading
import warnings

import pytest
import torch

from diffpolicy.trainers.io.signals import StopSignal
from diffpolicy.trainers.run.scope import run_scope


def test_global_settings_are_restored() -> None:
    logger = logging.getLogger("lightning.pytorch")
    before = (logger.level, signal.getsignal(signal.SIGINT), dict(os.environ), warnings.filters[:])
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    torch.set_deterministic_debug_mode("warn")
    try:
        with run_scope(torch.device("cpu")), StopSignal().installed():
            assert torch.get_num_threads() == 1
            assert logger.level == logging.ERROR
            os.environ["DIFFPOLICY_TEST"] = "1"
            torch.use_deterministic_algorithms(True)
            torch.rand(3)
        assert torch.get_num_threads() == 2
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_num_threads(1)
        torch.set_deterministic_debug_mode("default")
    after = (logger.level, signal.getsignal(signal.SIGINT), dict(os.environ), warnings.filters[:])
    assert after == before
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_are_restored_after_an_error() -> None:
    level = logging.getLogger("lightning.pytorch").level
    with pytest.raises(RuntimeError, match="oops"), run_scope(torch.device("cpu")):
        raise RuntimeError("oops")
    assert logging.getLogger("lightning.pytorch").level == level


def test_only_warnings_of_the_frameworks_are_silenced() -> None:
    with run_scope(torch.device("cpu")):
        warnings.warn_explicit("internal", DeprecationWarning, "x.py", 1, module="torchrl.envs")
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn_explicit("mine", UserWarning, "x.py", 1, module="my_module")


def test_the_first_interrupt_is_a_request_and_the_second_is_raised() -> None:
    stop = StopSignal()
    with stop.installed():
        assert not stop.requested()
        signal.raise_signal(signal.SIGINT)
        assert stop.requested()
        assert not stop.forced()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.forced()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_termination_is_a_request_however_often_it_comes(number: signal.Signals) -> None:
    stop, before = StopSignal(), signal.getsignal(number)
    with stop.installed():
        for _ in range(3):
            signal.raise_signal(number)
    assert stop.requested()
    assert not stop.checkpoint_requested()
    assert not stop.forced()
    assert not stop.interrupted()
    assert signal.getsignal(number) is before


def test_every_sigusr2_is_answered_by_a_checkpoint_that_begins_after_it() -> None:
    stop = StopSignal()
    with stop.installed():
        for times in (1, 2, 255):
            assert not stop.checkpoint_requested()
            for _ in range(times):
                signal.raise_signal(signal.SIGUSR2)
            assert stop.checkpoint_requested()
            stop.begin_checkpoint()
    assert not stop.requested()


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored() -> None:
    """As ``nohup`` does it."""
    stop, before = StopSignal(), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.installed():
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_for_the_main_thread_only() -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    seen: list[bool] = []

    def other() -> None:
        with StopSignal().installed():
            seen.append({n: signal.getsignal(n) for n in signal.valid_signals()} == before)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_reaches_processes_forked_before_it(number: signal.Signals) -> None:
    stop = StopSignal()
    with stop.installed():
        ready, ask = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(ready, 1)
            os._exit(7 if stop.requested() else 1)
        signal.raise_signal(number)
        os.write(ask, b"x")
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
