"""Training scripts in this process, and what they leave behind."""

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diffpolicy.trainers.loops.on_policy as on_policy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Main = Callable[[list[str]], int]


@pytest.fixture(scope="session")
def load_main() -> Callable[[str], Main]:
    """The ``main`` of a script in examples/, by the name of the script."""

    def load(name: str) -> Main:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        entry: Main = module.main
        return entry

    return load


@pytest.fixture(scope="session")
def read_rows() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of metrics.csv in an output folder."""

    def read(output: Path) -> list[dict[str, str]]:
        with (output / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> Callable[[Main, list[str]], str]:
    """The one line that a refused command line prints."""

    def run(main: Main, argv: list[str]) -> str:
        with pytest.raises(SystemExit) as raised:
            main(argv)
        assert raised.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return captured.err

    return run


@pytest.fixture(scope="session")
def after_iterations() -> Callable[[pytest.MonkeyPatch, int, Callable[[], Any]], None]:
    """Call something on every rank in the course of the n-th iteration of an on-policy run."""

    def patch(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> None:
        episode_stats, calls = on_policy.episode_stats, []

        def counted(rollout: Any) -> Any:
            calls.append(rollout)
            if len(calls) == number:
                act()
            return episode_stats(rollout)

        monkeypatch.setattr(on_policy, "episode_stats", counted)

    return patch
