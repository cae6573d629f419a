"""Settings of the whole test suite: one thread, fixed seeds, no display."""

import os
import random
import signal
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# A run leaves signals ignored that whoever started it ignores, as nohup and background jobs do.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

sys.path.insert(0, str(Path(__file__).parent / "support"))
pytest.register_assert_rewrite("small_methods", "documented")

# The same examples in every run, and no time limit per example on a busy machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- third-party code draws from the global generator
    torch.manual_seed(0)


@pytest.fixture
def faulty_envs(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of environments that fail, which fresh processes can import as well."""
    folder = str(Path(__file__).parent / "faulty")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder, prepend=os.pathsep)
    return "faulty_envs"
