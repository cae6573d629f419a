"""Two runs with the same seed and flags write the same metrics."""

from pathlib import Path

import pytest
from small_methods import small_config

from diffpolicy.trainers import METHODS, prepare, train


def metrics(method: str, output: Path, seed: int) -> bytes:
    run = prepare(small_config(method, eval_every=40, output=str(output), seed=seed))
    assert train(run)
    assert (output / "timing.csv").read_text().startswith("frames,wall_seconds,frames_per_second")
    return (output / "metrics.csv").read_bytes()


# That a resumed run equals a straight one of the same seed shows most of it with every change.
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_metrics(method: str, tmp_path: Path) -> None:
    first = metrics(method, tmp_path / "first", 3)
    assert len(first.splitlines()) > 2
    assert metrics(method, tmp_path / "second", 3) == first
    assert metrics(method, tmp_path / "other", 4) != first
