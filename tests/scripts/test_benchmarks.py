"""Where examples/benchmarks/run.py trains and keeps results."""

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

Main = Callable[[list[str]], int]
Refused = Callable[[list[str]], str]
SMALL = "--num-envs 2 --rollout-steps 8 --epochs 1 --total-frames 16 --eval-episodes 1 --logger csv"


@pytest.fixture(scope="module")
def main(load_main: Callable[[str], Main]) -> Main:
    return load_main("benchmarks/run")


@pytest.fixture
def refused(main: Main, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The message about a command line that is refused."""

    def run(argv: list[str]) -> str:
        with pytest.raises(SystemExit) as raised:
            main(argv)
        assert raised.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "x"], "--output is chosen for each run; give --runs, the folder of all"),
        (["--output=x"], "--output is chosen for each run"),
        (["--seed", "1"], "--seed is chosen for each run; give --seeds"),
    ],
)
def test_flags_that_the_script_gives_itself_are_refused_before_training(
    refused: Refused, tmp_path: Path, flags: list[str], words: str
) -> None:
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert words in refused(["--method", "gaussian_ppo", *folders, *flags])
    assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_kept_are_refused_before_training(
    refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "results").write_text("a file")
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert "--results" in refused(["--method", "gaussian_ppo", *folders])
    assert not (tmp_path / "runs").exists()


def test_relative_folders_are_those_of_the_working_directory(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int, context: Any, max_tasks_per_child: int) -> None:
            super().__init__(workers)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(main.__globals__, "ProcessPoolExecutor", Pool)  # type: ignore[attr-defined]
    argv = "--method gaussian_ppo --env InvertedPendulum-v5 --seeds 3 --runs mine --results kept"
    for _ in range(2):  # the second time, both folders exist
        assert main([*argv.split(), *SMALL.split(), "--resume", "last"]) == 0
        kept = json.loads(Path("kept/InvertedPendulum-v5/gaussian_ppo-seed3.json").read_text())
        assert kept["seed"] == 3
        assert Path("mine/InvertedPendulum-v5/gaussian_ppo-seed3/checkpoints/last.ckpt").exists()
    assert multiprocessing.active_children() == []
