"""The examples without Lightning, run in this process."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from objectives import DiffPPOLoss

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_loop_learns_inverted_pendulum(capsys: pytest.CaptureFixture[str]) -> None:
    # An untrained policy keeps the pole up for about 25 steps.
    assert load("plain_loop.py").main(["--total-frames", "15360"]) > 100
    assert "15360 frames" in capsys.readouterr().out


def test_custom_actors_learn_inverted_pendulum() -> None:
    results = load("custom_actor.py").main(["--total-frames", "10240"])
    assert set(results) == {"own score network", "own actor"}
    assert min(results.values()) > 40


def test_an_unsuitable_actor_is_told_what_it_must_offer() -> None:
    with pytest.raises(TypeError, match="must offer the members of diffpolicy"):
        DiffPPOLoss(nn.Linear(1, 1), nn.Linear(1, 1))
