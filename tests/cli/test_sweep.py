"""Searches: what is chosen, pruned, kept, and gone on with."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_methods import small_options

from diffpolicy.cli import main
from diffpolicy.trainers import METHODS

pytest.importorskip("optuna")

from diffpolicy.trainers.run.sweep import STUDY_FILE, Sweep, trial_folder

SEARCH = {"lr": {"low": "1e-4", "high": 1e-2, "log": True}, "epochs": {"low": 1, "high": 2}}


def write(path: Path, **changes: Any) -> Path:
    """A file with a search over small runs of DiffPPO."""
    options = small_options(METHODS["diffppo"], eval_every=80, eval_episodes=1)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    content = {"method": "diffppo", "trials": 2, "options": plain, "search": SEARCH, **changes}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_a_sweep_makes_its_trials_keeps_the_best_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write(tmp_path / "search.yaml"), tmp_path / "sweep"
    words = ["sweep", str(file), "--output", str(output)]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("COMPLETE" in line for line in lines) == 2
    best = next(line for line in lines if "COMPLETE" in line)
    number = int(best.split("|")[1])
    kept = yaml.safe_load((output / "best.yaml").read_text())
    assert 1e-4 <= kept["lr"] <= 1e-2
    assert kept["epochs"] in (1, 2)
    assert kept == yaml.safe_load((trial_folder(output, number) / "config.yaml").read_text())

    assert main([*words, "--trials", "3"]) == 0
    assert sum("COMPLETE" in line for line in capsys.readouterr().out.splitlines()) == 3
    assert {path.name for path in output.iterdir()} == {
        "best.yaml",
        STUDY_FILE,
        *(f"trial_000{i}" for i in range(3)),
    }
    rates = {
        yaml.safe_load((trial_folder(output, i) / "config.yaml").read_text())["lr"]
        for i in range(3)
    }
    assert len(rates) == 3
    # Finished: nothing more is run.
    assert main([*words, "--trials", "3"]) == 0

    write(file, search={"epochs": {"low": 1, "high": 3}})
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "holds a sweep with other search" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_that_is_worse_than_the_others_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import optuna

    # What the pruner decides is Optuna's business.
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)
    file, output = write(tmp_path / "search.yaml"), tmp_path / "sweep"
    assert main(["sweep", str(file), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "trial 1 is pruned at -" in out
    frames = [
        len((trial_folder(output, i) / "metrics.csv").read_text().splitlines()) - 1
        for i in range(2)
    ]
    assert frames == [3, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dimee"}, "has the method dimee; did you mean dime?"),
        ({"trials": 0}, "has trials: 0, which must be a whole number of at least 1."),
        ({"serach": {}}, "has an entry serach; did you mean search?"),
        ({"search": {}}, "has no option under search"),
        ({"search": {"lrr": {"low": 1, "high": 2}}}, "searches lrr, which diffppo does not have;"),
        ({"search": {"lr": {"low": 1}}}, "searches lr, which needs low and high"),
        ({"search": {"lr": {"low": 2, "high": 1}}}, "whose low must be less than its high"),
        ({"search": {"lr": {"low": "a", "high": 1}}}, "whose low and high must be numbers"),
        ({"search": {"lr": {"choices": 3}}}, "whose choices must be a list"),
        ({"search": {"env": {"low": 1, "high": 2}}}, "whose values are no single numbers"),
        ({"options": {"env": "Pendulun-v1"}}, "is not a registered Gymnasium environment id"),
        ({"options": {"lr": "fast"}}, "--lr must be a number, got 'fast'."),
    ],
)
def test_what_is_wrong_with_a_sweep_is_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", str(write(tmp_path / "a.yaml", **changes)), "--output", str(output)])
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert message in err
    assert not output.exists()


def test_choices_may_be_lists_and_words(tmp_path: Path) -> None:
    import optuna

    search = {
        "actor_hidden_sizes": {"choices": [[8], [4, 4]]},
        "lr_schedule": {"choices": ["linear", "constant"]},
    }
    sweep = Sweep.read(write(tmp_path / "a.yaml", search=search))
    fixed = {"actor_hidden_sizes": "[4, 4]", "lr_schedule": '"constant"'}
    trial: Any = optuna.trial.FixedTrial(fixed)
    assert sweep.suggest(trial) == {"actor_hidden_sizes": (4, 4), "lr_schedule": "constant"}
