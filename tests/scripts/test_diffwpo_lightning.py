"""The training script of DiffWPO, run as a user would run it."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from diffpolicy.trainers.files import read_checkpoint

# 64 environment steps and two epochs of two minibatches in an iteration.
SMALL_OPTIONS = {
    "--env": "Pendulum-v1",
    "--max-episode-steps": 20,
    "--num-envs": 4,
    "--rollout-steps": 16,
    "--epochs": 2,
    "--minibatch-size": 64,
    "--denoising-steps": 2,
    "--hidden-size": 16,
    "--critic-hidden-size": 16,
    "--eval-episodes": 2,
    "--checkpoint-every": 128,
    "--total-frames": 128,
}
SMALL = [str(word) for option in SMALL_OPTIONS.items() for word in option]

Main = Callable[[list[str]], int]
ReadRows = Callable[[Path], list[dict[str, str]]]
ErrorLine = Callable[[Main, list[str]], str]


@pytest.fixture(scope="module")
def main(load_main: Callable[[str], Main]) -> Main:
    return load_main("diffwpo_lightning")


def test_a_run_writes_its_files_and_can_be_continued(
    main: Main, tmp_path: Path, read_rows: ReadRows, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    flags = ["--value-support", "-100", "10", "23", "--target-entropy", "-4", "--kl-samples", "4"]
    assert main([*SMALL, *flags, "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert (results["method"], results["env"]) == ("diffwpo", "Pendulum-v1")
    assert (results["env_steps"], results["gradient_steps"]) == (128, 8)
    assert results["config"]["target_entropy"] == -4
    assert results["config"]["step_size_per_step"] is True
    assert (output / "returns.png").stat().st_size > 10_000
    console = capsys.readouterr()
    assert "evaluation at 128 frames" in console.out
    assert "Warning" not in console.out + console.err

    last = output / "checkpoints" / "last.ckpt"
    assert main(["--resume", str(last), "--total-frames", "192"]) == 0
    rows = read_rows(output)
    assert [int(row["frames"]) for row in rows] == [64, 128, 192]
    assert [int(row["gradient_steps"]) for row in rows] == [4, 8, 12]
    for name in ("loss_actor", "loss_qvalue", "loss_multiplier", "loss_alpha", "kl"):
        assert all(math.isfinite(float(row[name])) for row in rows), name
    state = read_checkpoint(str(last))
    assert (state["frames"], state["gradient_steps"]) == (192, 12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kl-bound", "0"], "--kl-bound must be greater than 0, got 0.0"),
        (["--temperature", "0"], "--temperature must be greater than 0, got 0.0"),
        (["--value-support", "1", "0", "9"], "--value-support must be a smaller and a greater"),
        (["--critic-reduction", "max"], "--critic-reduction must be one of mean, min, got 'max'"),
        (
            ["--minibatch-size", "129"],
            "--minibatch-size must be at most 128, the rows of a rollout",
        ),
        (["--denoising-steps", "0"], "--denoising-steps must be at least 1, got 0"),
        (["--step-size", "20"], "step_size is too large"),
        (["--clip-epsilon", "0.1"], "--clip-epsilon"),
        (["--env", "CartPole-v1"], "--env 'CartPole-v1' has the action space"),
    ],
)
def test_wrong_flags_are_one_sentence(
    main: Main, tmp_path: Path, error_line: ErrorLine, flags: list[str], message: str
) -> None:
    assert message in error_line(main, [*SMALL, *flags, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_help_names_the_flags_of_the_method(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    flags = ("--kl-bound", "--target-entropy", "--value-support MIN MAX BINS", "--precondition")
    for flag in (*flags, "--denoising-steps", "--discount-mode", "--total-frames"):
        assert flag in text, flag
