"""Curves of several runs: what is one curve, its band, and the table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rliable import library, metrics

from diffpolicy.cli import main
from diffpolicy.cli.curves import confidence, interquartile_mean, mean


def write_run(folder: Path, final: float, **config: Any) -> str:
    """The results of a run that was evaluated at its beginning and after 100 steps."""
    folder.mkdir()
    method, env = config.pop("method", "dime"), config.pop("env", "Pendulum-v1")
    results = {
        "method": method,
        "env": env,
        "config": {"eval_policy": "stochastic", "seed": 0, "output": str(folder), **config},
        "gradient_steps": 50,
        "evaluations": [
            {"env_steps": 0, "return_mean": 0.0},
            {"env_steps": 100, "return_mean": final},
        ],
    }
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def test_runs_that_differ_in_their_seed_are_one_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / f"a{i}", v, seed=i) for i, v in enumerate((1, 2, 3, 4, 100))]
    runs += [write_run(tmp_path / "b", 7, method="sac"), write_run(tmp_path / "c", 8, method="sac")]
    picture = tmp_path / "curves.png"
    assert main(["plot", *runs, "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| dime | sampled | 100 | 50 | 22 | 3 | 2 to 68 | 1 | 100 | 1, 2, 3")
    assert lines[3].startswith("| sac | sampled | 100 | 50 | 8 | \N{EN DASH} | \N{EN DASH} | 7 | 8")
    assert lines[-1] == f"the curves are in {picture}"


def test_a_label_says_in_what_runs_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"batch_size": 64, "hidden": [8, 8]}
    runs = [
        write_run(tmp_path / "a", 1, **sizes),
        write_run(tmp_path / "b", 2, **(sizes | {"hidden": [4]})),
        write_run(tmp_path / "c", 3, env="Hopper-v5", **sizes),
    ]
    assert main(["plot", *runs, "--output", str(tmp_path / "curves.svg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == [
        "dime on Pendulum-v1, hidden 8 8",
        "dime on Pendulum-v1, hidden 4",
        "dime on Hopper-v5, hidden 8 8",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run: "),
        ("[]", "is something else"),
        ('{"evaluations": []}', "has not been evaluated yet"),
        ("x", "is something else"),
    ],
)
def test_what_is_no_run_is_named(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert main(["plot", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"run='{tmp_path}'" in err or f"run {tmp_path}" in err
    assert message in err


def test_a_picture_of_an_unknown_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a", 1)
    with pytest.raises(SystemExit, match="2"):
        main(["plot", run, "--output", str(tmp_path / "curves.xyz")])
    assert "xyz" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [1, 3, 4, 5, 8, 11])
def test_the_interquartile_mean_is_that_of_rliable(seeds: int) -> None:
    returns = np.random.default_rng(seeds).normal(size=(seeds, 3))
    theirs = [metrics.aggregate_iqm(returns[:, [i]]) for i in range(3)]
    np.testing.assert_allclose(interquartile_mean(returns), theirs)


def test_the_interval_is_that_of_rliable_but_for_its_own_samples() -> None:
    returns = np.random.default_rng(0).normal(size=(10, 4))
    _, intervals = library.get_interval_estimates(
        {"": returns[:, None]}, metrics.aggregate_mean, reps=5000
    )
    for ours, theirs in zip(confidence(returns, mean), intervals[""], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_the_confidence_interval_covers_the_mean_as_often_as_it_says() -> None:
    returns = np.random.default_rng(0).normal(size=(20, 200))
    low, high = confidence(returns, mean)
    # The bootstrap of 20 values is a little too narrow: about 93 %.
    assert 0.88 < np.mean((low < 0) & (high > 0)) < 0.98
    assert low.shape == high.shape == (200,)
