"""Every method on environments with the habits of real ones: metrics as on well-behaved ones."""

from pathlib import Path
from typing import Any

import pytest
from small_methods import EACH, small_config

from diffpolicy.trainers import RLModule, prepare, train


@pytest.fixture(autouse=True)
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environments be imported by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "faulty"))


def run(method: str, name: str, output: Path, **options: Any) -> tuple[str, RLModule]:
    config = small_config(
        method, env=f"canaries:{name}-v0", eval_every=40, output=str(output / name), **options
    )
    prepared = prepare(config)
    assert train(prepared)
    return (output / name / "metrics.csv").read_text(), prepared.module


@pytest.mark.parametrize("method", EACH)
def test_all_habits_at_once_change_nothing(
    method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found, module = run(method, "Everything", tmp_path)
    told = capfd.readouterr().err
    expected, _ = run(method, "Tidy", tmp_path)
    assert found == expected
    assert len(found.splitlines()) > 2
    assert "bits (2), choices (5), collector (1), count (1), done (1)" in module.notes.interface
    assert module.notes.interface.endswith("drives 1 action(s) in [-0.1, 0.7]")
    # Of closing, nothing else.
    assert told.count("warning: ") == 1
    assert "could not be closed (RuntimeError: the simulator has gone away)" in told
