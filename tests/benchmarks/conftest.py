"""Side-by-side timing: a claim is a ratio of two callables measured in turns in one process."""

import time
from collections.abc import Callable

import pytest

Compare = Callable[..., float]


def _seconds(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


@pytest.fixture
def compare(benchmark) -> Compare:
    """Time ``ours`` and ``reference`` in turns; report ours and return the ratio of the minima.

    Turns and minima make the ratio steady on a busy machine, where absolute times are not.
    """

    def run(
        ours: Callable[[], object], reference: Callable[[], object], *, calls: int, turns: int = 150
    ) -> float:
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
