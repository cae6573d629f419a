"""The training script of DIME, run as a user would run it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffpolicy.trainers.io.files import read_checkpoint

SMALL_OPTIONS = {
    "--num-envs": 2,
    "--learning-starts": 20,
    "--iteration-frames": 10,
    "--total-frames": 40,
    "--batch-size": 16,
    "--denoising-steps": 2,
    "--actor-hidden-sizes": 8,
    "--critic-hidden-sizes": 8,
    "--max-episode-steps": 10,
    "--eval-episodes": 2,
    "--checkpoint-every": 10,
}
SMALL = [str(word) for option in SMALL_OPTIONS.items() for word in option]

Main = Callable[[list[str]], int]
ReadRows = Callable[[Path], list[dict[str, str]]]
ErrorLine = Callable[[Main, list[str]], str]


@pytest.fixture(scope="module")
def main(load_main: Callable[[str], Main]) -> Main:
    return load_main("dime_lightning")


@pytest.mark.parametrize("env", ["Pendulum-v1", "dmc:pendulum-swingup"])
def test_a_run_writes_its_files(
    main: Main, tmp_path: Path, env: str, capsys: pytest.CaptureFixture[str], read_rows: ReadRows
) -> None:
    output = tmp_path / "run"
    range_flags = ["--value-range", "-20", "20"]
    flags = ["--updates-per-step", "0.5", "--policy-delay", "3", *range_flags]
    assert main([*SMALL, *flags, "--env", env, "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert (results["method"], results["env"]) == ("dime", env)
    assert (results["env_steps"], results["gradient_steps"]) == (40, 10)
    assert results["config"]["value_range"] == [-20, 20]
    assert [int(row["frames"]) for row in read_rows(output)] == [30, 40]
    assert (output / "returns.png").stat().st_size > 10_000
    first, replay, second, last = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert (first, second) == ("frames_0000000030.ckpt", "frames_0000000040.ckpt")
    assert (replay[:18], replay[-7:], last) == ("frames_0000000040-", ".replay", "last.ckpt")
    console = capsys.readouterr()
    assert "evaluation at 40 frames" in console.out
    assert "Warning" not in console.out + console.err


def test_a_resumed_run_goes_on(main: Main, tmp_path: Path, read_rows: ReadRows) -> None:
    output = tmp_path / "run"
    assert main([*SMALL, "--output", str(output)]) == 0
    last = output / "checkpoints" / "last.ckpt"
    assert main(["--resume", "last", "--output", str(output), "--total-frames", "60"]) == 0
    rows = read_rows(output)
    assert [int(row["frames"]) for row in rows] == [30, 40, 50, 60]
    assert [int(row["gradient_steps"]) for row in rows] == [10, 20, 30, 40]
    state = read_checkpoint(str(last))
    assert (state["frames"], state["gradient_steps"]) == (60, 40)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--updates-per-step", "0"], "--updates-per-step must be greater than 0, got 0"),
        (["--updates-per-step", "0.03"], "--updates-per-step 0.03 times --iteration-frames 10"),
        (["--policy-delay", "0"], "--policy-delay must be at least 1, got 0"),
        (["--learning-starts", "21"], "--learning-starts must be a multiple of --num-envs 2"),
        (["--iteration-frames", "5"], "--iteration-frames must be a multiple of --num-envs 2"),
        (["--total-frames", "20"], "--total-frames must be greater than 20"),
        (["--replay-size", "15"], "--replay-size must be at least"),
        (["--value-range", "3", "1"], "--value-range must be a smaller and a greater number"),
        (["--value-range", "0", "inf"], "--value-range must be a smaller and a greater number"),
        (["--value-range", "0", "1", "--critic-type", "scalar"], "--critic-type categorical"),
        (["--critic-reduction", "min"], "--critic-reduction min needs --critic-type scalar"),
        (["--gamma", "1"], "--gamma 1 leaves the range of values open"),
        (["--delay-critic"], "--delay-critic does not go with --critic-normalization batch"),
        (["--preset", "tiny"], "--preset must be one of cpu, paper, got 'tiny'"),
        (["--actor-hidden-sizes", "0"], "--actor-hidden-sizes must be at least 1, got 0"),
        (["--step-size", "20"], "step_size is too large"),
        (["--env", "dmc:cheetah-fly"], "--env 'dmc:cheetah-fly'"),
    ],
)
def test_wrong_flags_are_one_sentence(
    main: Main, tmp_path: Path, error_line: ErrorLine, flags: list[str], message: str
) -> None:
    assert message in error_line(main, [*SMALL, *flags, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_help_names_the_presets(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--updates-per-step", "--policy-delay", "--value-range", "--preset cpu|paper"):
        assert flag in text


def test_the_paper_preset_can_be_changed_by_flags(main: Main, tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = ["--preset", "paper", "--learning-starts", "4", "--iteration-frames", "2"]
    flags += ["--total-frames", "6", "--batch-size", "4", "--max-episode-steps", "4"]
    flags += ["--eval-episodes", "1", "--env", "Pendulum-v1", "--denoising-steps", "3"]
    assert main([*flags, "--output", str(output)]) == 0
    config = json.loads((output / "config.json").read_text())
    assert config["critic_hidden_sizes"] == [2048, 2048]
    assert config["actor_hidden_sizes"] == [256, 256, 256]
    assert (config["updates_per_step"], config["policy_delay"], config["num_envs"]) == (2.0, 3, 1)
    assert config["denoising_steps"] == 3
    assert json.loads((output / "results.json").read_text())["gradient_steps"] == 4


@pytest.mark.slow
def test_the_paper_preset_runs_a_hundred_updates(main: Main, tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = ["--preset", "paper", "--env", "HalfCheetah-v5", "--learning-starts", "300"]
    flags += ["--iteration-frames", "50", "--total-frames", "350", "--max-episode-steps", "50"]
    assert main([*flags, "--eval-episodes", "1", "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["gradient_steps"] == 100
    state = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in state.values())
