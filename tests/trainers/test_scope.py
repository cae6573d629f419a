import logging
import os
import signal
import warnings

import pytest
import torch

from diffpolicy.trainers.run.scope import StopSignal, run_scope


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


def test_sigterm_is_a_request_however_often_it_comes() -> None:
    stop, before = StopSignal(), signal.getsignal(signal.SIGTERM)
    with stop.installed():
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert stop.requested()
    assert not stop.forced()
    assert not stop.interrupted()
    assert signal.getsignal(signal.SIGTERM) is before


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
