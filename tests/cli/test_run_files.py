"""Configurations of runs: written, printed, and given back."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from small_methods import small_words

from diffpolicy.cli import main
from diffpolicy.trainers import METHODS, DIMEConfig
from diffpolicy.trainers.io.checkpoint import Checkpoint


@pytest.mark.parametrize("name", METHODS)
def test_a_printed_configuration_is_the_same_when_it_is_given_back(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small_words(name, seed=3, gamma=0.97), "--print-config"]
    assert main(["train", name, *words]) == 0
    printed = capsys.readouterr().out
    values = yaml.safe_load(printed)
    assert (values["method"], values["seed"], values["gamma"]) == (name, 3, 0.97)
    assert {"output", "resume"}.isdisjoint(values)
    (tmp_path / "run.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert not (tmp_path / "runs").exists()


def test_the_configuration_of_a_run_repeats_it(dime_run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["train", "--config", str(dime_run / "config.yaml"), "--output", str(again)]) == 0
    for name in ("metrics.csv", "config.yaml"):
        assert (again / name).read_bytes() == (dime_run / name).read_bytes()
    ours, theirs = (Checkpoint.of_run(run, "run").content for run in (again, dime_run))
    assert all((ours["state_dict"][k] == v).all() for k, v in theirs["state_dict"].items())


def test_an_evaluation_repeats_the_last_one_of_the_run(
    dime_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = json.loads((dime_run / "results.json").read_text())["evaluations"][-1]
    capsys.readouterr()
    assert main(["eval", str(dime_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in last} == last
    assert (found["method"], found["env"]) == ("dime", "Pendulum-v1")
    assert main(["eval", str(dime_run), "--episodes", "3", "--seed", "7", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["episodes"] == 3
    assert other["return_mean"] != last["return_mean"]
    assert main(["eval", str(dime_run / "checkpoints" / "frames_0000000080.ckpt")]) == 0
    assert "dime on Pendulum-v1 after 80 environment steps: return -" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "method: dime\ntotal_frames: many\n",
            "--total-frames must be a whole number, got 'many'.",
        ),
        ("method: dime\nenv: {a: 1}\n", "--env must be text, got {'a': 1}."),
        ("method: dime\nlr_actor: [1, 2]\n", "--lr-actor must be one value, got 1.0 2.0."),
        ("method: dime\ncompile: 3\n", "compile"),
        ("method: dime\nlr_acter: 1\n", "there is no flag --lr-acter; did you mean --lr-actor?"),
        ("method: dmie\n", "there is no method dmie; did you mean dime?"),
        ("env: Pendulum-v1\n", "METHOD is missing, such as dime in `diffpolicy train dime`; or"),
        ("- 1\n- 2\n", "must hold lines such as `total_frames: 10000`."),
        ("a: [1\n", "is not a YAML file"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    words = ["train", "--config", str(path), "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(words))
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_the_file_of_another_method_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("method: sac\n")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "dime", "--config", str(path)])
    assert "--method must be dime, which is what runs here, got 'sac'." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "random"),
    [
        ({"total_frames": 10_000}, 1_000),
        ({"total_frames": 50_000}, 5_000),
        ({"total_frames": 1_000_000}, 5_000),
        ({"total_frames": 130}, 12),
        ({"total_frames": 10_000, "cpu_ranks": 2}, 500),
        ({"total_frames": 5}, 4),
        ({"total_frames": 10_000, "learning_starts": 40}, 40),
    ],
)
def test_the_number_of_random_steps_follows_the_budget(
    options: dict[str, int], random: int
) -> None:
    assert DIMEConfig(**options).learning_starts == random
