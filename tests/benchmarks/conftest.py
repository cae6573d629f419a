"""Side-by-side timing: a claim is a ratio of two callables measured in turns in one process.

`--device cuda` puts everything on a GPU. Limits are for one CPU thread unless a test says more.
"""

import time
from collections.abc import Callable, Iterator

import pytest
import torch

Compare = Callable[..., float]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where to run the benchmarks")


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Make tensors and modules of a benchmark on the device of ``--device``."""
    name = request.config.getoption("--device", "cpu")
    torch.set_default_device(None if name == "cpu" else name)
    yield name
    torch.set_default_device(None)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(run: Callable[[], object], calls: int) -> float:
    _wait()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait()
    return (time.perf_counter() - start) / calls


@pytest.fixture
def compare(benchmark) -> Compare:
    """Time ``ours`` and ``reference`` in turns; report ours and return the ratio of the minima.

    Turns and minima make the ratio steady on a busy machine, where absolute times are not.
    """

    def run(
        ours: Callable[[], object], reference: Callable[[], object], *, calls: int, turns: int = 150
    ) -> float:
        # A default device intercepts every call of torch, which takes 5 % of an eager update.
        torch.set_default_device(None)
        for _ in range(3):
            ours()
            reference()
        times = [(_seconds(ours, calls), _seconds(reference, calls)) for _ in range(turns)]
        best, best_reference = (min(column) for column in zip(*times, strict=True))
        benchmark.extra_info["ratio"] = round(best / best_reference, 3)
        benchmark.extra_info["ours_ms"] = round(1e3 * best, 3)
        benchmark.extra_info["reference_ms"] = round(1e3 * best_reference, 3)
        benchmark.pedantic(ours, rounds=10, iterations=calls)
        return best / best_reference

    return run
