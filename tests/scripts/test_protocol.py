"""The protocol: which runs it makes, and what the page says of the results that are there."""

import importlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from documented import DOCS, ROOT
from rliable import metrics

from diffpolicy.trainers import METHODS
from diffpolicy.trainers.run.cli import parse_config
from diffpolicy.trainers.run.parser import Parser

FOLDER = ROOT / "examples" / "benchmarks"
MAX_PICTURE = 150_000


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts' own folder is on the path, as it is when they run."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def protocol() -> ModuleType:
    return importlib.import_module("protocol")


@pytest.fixture
def aggregate() -> ModuleType:
    return importlib.import_module("aggregate")


def write(
    path: Path, returns: Sequence[float], steps: int, acting: str = "deterministic", **more: Any
) -> None:
    """Results of a run that was evaluated at equal distances up to some step."""
    at = np.linspace(0, steps, len(returns), dtype=int).tolist()
    content = {
        "seed": int(path.stem.rpartition("seed")[2]),
        "env_steps": steps,
        "gradient_steps": 10,
        "wall_seconds": 3600,
        "config": {"eval_policy": acting},
        "evaluations": [
            {"env_steps": step, "return_mean": value}
            for step, value in zip(at, returns, strict=True)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **more}))


def page_of(folder: Path) -> str:
    """The page of the results in a folder, as if it were in docs/."""
    page = importlib.import_module("protocol_page")
    groups = importlib.import_module("protocol_results").load(folder)
    return str(page.page(groups, page.link_from(DOCS / "results.md", folder)))


def test_the_aggregate_is_that_of_rliable(aggregate: ModuleType) -> None:
    scores = [np.arange(4.0), np.arange(4.0, 8.0)]
    assert aggregate.aggregate(scores) == 3.5
    assert aggregate.aggregate([np.array([0.0, 1, 1, 9, 5]), np.array([1.0])]) == 2
    many = np.random.default_rng(0).normal(size=(3, 5))
    assert aggregate.aggregate(list(many)) == pytest.approx(metrics.aggregate_iqm(many.T))


def test_the_interval_contains_the_aggregate_and_is_stratified(aggregate: ModuleType) -> None:
    scores = list(np.random.default_rng(0).normal(size=(3, 5)))
    low, high = aggregate.interval(scores)
    assert low < aggregate.aggregate(scores) < high
    assert (low, high) == aggregate.interval(scores)
    # Tasks are not drawn, so that their differences do not widen it.
    assert aggregate.interval([np.zeros(5), np.ones(5)]) == (0.5, 0.5)


def test_a_scale_without_length_is_refused(aggregate: ModuleType) -> None:
    np.testing.assert_array_equal(aggregate.normalized(np.array([-2.0, 0, 2]), -2, 2), [0, 0.5, 1])
    with pytest.raises(ValueError, match=r"one must be above zero, 1, got 1\."):
        aggregate.normalized(np.ones(2), 1, 1)


def test_the_page_is_that_of_the_committed_results(protocol: ModuleType) -> None:
    committed = (DOCS / "results.md").read_text()
    assert page_of(protocol.RESULTS) == committed, (
        "docs/results.md is not of these results; run examples/benchmarks/report.py --protocol."
    )
    for picture in protocol.RESULTS.glob("*.png"):
        assert picture.stat().st_size < MAX_PICTURE


def test_the_page_names_what_is_missing_and_what_failed(tmp_path: Path) -> None:
    cheetah, walker = tmp_path / "HalfCheetah-v5", tmp_path / "Walker2d-v5"
    for seed in range(10, 15):
        write(cheetah / f"diffppo-seed{seed}.json", [0, 500, seed * 100], 301_056)
    for seed in (10, 11):
        write(cheetah / f"ppo-seed{seed}.json", [0, 100, 600], 301_056)
    write(cheetah / "ppo-seed12.json", [0, 900], 150_528, failed="training ended")
    write(cheetah / "ppo-seed13.json", [0, 900], 150_528)  # not finished
    write(walker / "dime-100k-seed10.json", [7, 7], 100_000)
    text = page_of(tmp_path)
    assert (
        "8 of 90 runs are here. There are none of DPPO, DiffWPO, Gaussian WPO and SB3 PPO on"
        in text
    )
    assert "| DiffPPO | 1.00 (0.89 to 1.14) | 1 of 3 | 5 | – | 0 of 1 | 0 |" in text
    row = "| HalfCheetah-v5 (tuned on) | **1200**; 1200 (1067 to 1367) | – | **400**; – |"
    assert f"{row} – | – | – | 0 | 1200 |" in text
    assert "| DiffPPO | 5 of 5 | 301 056 | 10 | 1.00 | 1000, 1100, 1200, 1300, 1400 |" in text
    assert "| Gaussian PPO | 3 of 5; missing: 13 and 14; failed: 12 | 301 056 | 10 |" in text
    assert "600, 600, 0 |" in text
    # Another budget has its section; nothing was learned, so that nothing is normalised.
    longer = text[text.index("## Off-policy methods, 100 000 steps") :]
    assert "| DIME | – | 0 of 5 | 0 |" in longer
    assert "| Walker2d-v5 | **7.0**; – | – | – | – | – | – |" in longer
    assert "There are no results yet of DIME, DiffSAC, Gaussian SAC and SB3 SAC on Pen" in text


def test_sampled_actions_are_not_of_the_protocol(tmp_path: Path) -> None:
    write(tmp_path / "Hopper-v5" / "sac-seed10.json", [0, 1], 20_000, "stochastic")
    with pytest.raises(ValueError, match="sac, seed 10, on Hopper-v5: evaluations must be det"):
        page_of(tmp_path)


def test_the_page_and_its_pictures_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    for seed in (10, 11):
        write(results / "dmc-cheetah-run" / f"sac-seed{seed}.json", [0, seed, seed], 20_000)
    words = ["--protocol", "--results", str(results), "--page", str(tmp_path / "page.md")]
    importlib.import_module("report").main(words)
    link = re.search(r"!\[.*\]\((.*)\)", (tmp_path / "page.md").read_text())
    assert link is not None
    picture = (tmp_path / link[1]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < MAX_PICTURE
    assert "off-policy: 2 of 100 runs" in capsys.readouterr().out


class Training:
    """Stands for run.py: writes what a run leaves, and keeps the command lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds: list[int] = []
        self.codes: dict[int, int] = {}

    def __call__(self, words: Sequence[str], runs: Path) -> int:
        given = dict(zip(words[::2], words[1::2], strict=True))
        seed = int(given["--seeds"])
        self.seeds.append(seed)
        name = f"{given['--label']}-seed{seed}"
        code = self.codes.get(seed, 0)
        if code:
            write(runs / given["--env"] / name / f"seed{seed}", [0], 0)
            output = runs / given["--env"] / name / "results.json"
            (output.parent / f"seed{seed}").rename(output)
        else:
            steps = int(given["--total-frames"])
            write(self.folder / given["--env"] / f"{name}.json", [0, 1], steps)
        return code


@pytest.fixture
def training(tmp_path: Path, protocol: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Training:
    fake = Training(tmp_path / "results")
    monkeypatch.setattr(protocol, "train", fake)
    return fake


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """One method on one task."""
    folders = f"--results {tmp_path / 'results'} --runs {tmp_path / 'runs'}"
    return [*shlex.split(f"--group small --methods sac --envs Reacher-v5 {folders}"), "--seeds"]


def test_results_that_exist_are_not_made_again(
    protocol: ModuleType, training: Training, words: list[str]
) -> None:
    write(training.folder / "Reacher-v5" / "sac-seed11.json", [0, 1], 50_000)
    write(training.folder / "Reacher-v5" / "sac-seed12.json", [0], 0)  # of a run that was stopped
    assert protocol.main([*words, "10", "11", "12"]) == 0
    assert training.seeds == [10, 12]
    assert protocol.main([*words, "10", "11", "12"]) == 0
    assert training.seeds == [10, 12]
    # Another budget has files of its own.
    assert protocol.main([*words, "10", "--total-frames", "60000"]) == 0
    assert (training.folder / "Reacher-v5" / "sac-60k-seed10.json").exists()


def test_a_failure_is_kept_and_an_interruption_ends_it(
    protocol: ModuleType, training: Training, words: list[str]
) -> None:
    training.codes = {10: 1, 12: 130}
    assert protocol.main([*words, "10", "11", "12", "13"]) == 130
    assert training.seeds == [10, 11, 12]
    kept = json.loads((training.folder / "Reacher-v5" / "sac-seed10.json").read_text())
    assert kept["failed"] == "training ended with exit code 1"
    assert kept["config"]["output"] == "runs/benchmarks/Reacher-v5/sac-seed10"
    training.codes = {}
    assert protocol.main([*words, "10", "11", "12", "13"]) == 0
    assert training.seeds == [10, 11, 12, 12, 13]


def test_listed_commands_are_accepted(
    protocol: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert protocol.main(["--list", "--results", str(tmp_path)]) == 0
    lines = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    assert {(ROOT / script).is_file() for script, *_ in lines} == {True}
    ours = [flags for script, *flags in lines if script.endswith("run.py")]
    assert len(lines) == sum(len(group.methods) * len(group.tasks) for group in protocol.GROUPS)
    assert len(lines) - len(ours) == sum(len(group.tasks) for group in protocol.GROUPS)
    for flags in ours:
        args, rest = importlib.import_module("run").parser().parse_known_args(flags)
        assert args.seeds == list(protocol.SEEDS)
        config_class = METHODS[args.method].config
        given = Parser(config_class).parse_options(["--env", args.env, *rest])
        assert parse_config(config_class, given)[0].eval_policy == protocol.ACTING


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--total-frames", "1500"], "--total-frames must be a multiple of 1000, got 1500."),
        (["--methods", "ppo", "--group", "small"], "--methods must name some of diffsac, dime, sa"),
        (["--envs", "Ant-v5", "--group", "small"], "--envs must name some of InvertedDoublePendu"),
    ],
)
def test_what_cannot_be_run_is_refused(
    protocol: ModuleType, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        protocol.main(flags)
    assert message in capsys.readouterr().err
