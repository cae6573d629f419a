"""The training script of DiffSAC, run as a user would run it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
    return load_main("diffsac_lightning")


def test_a_run_writes_its_files_and_goes_on(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], read_rows: ReadRows
) -> None:
    output = tmp_path / "run"
    flags = ["--critic-head", "hl_gauss", "--value-range", "-20", "20", "--sampled-steps", "2"]
    flags += ["--checkpoint-replay", "never"]
    assert main([*SMALL, *flags, "--updates-per-step", "0.5", "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert (results["method"], results["env"]) == ("diffsac", "Pendulum-v1")
    assert (results["env_steps"], results["gradient_steps"]) == (40, 10)
    assert results["config"]["sampled_steps"] == 2
    assert (output / "returns.png").stat().st_size > 10_000
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["frames_0000000030.ckpt", "frames_0000000040.ckpt", "last.ckpt"]
    console = capsys.readouterr()
    assert "evaluation at 40 frames" in console.out
    assert "Warning" not in console.out + console.err
    last = output / "checkpoints" / "last.ckpt"
    # The replay buffer is filled again with 20 steps of the trained policy.
    assert main(["--resume", str(last), "--total-frames", "70"]) == 0
    assert [int(row["frames"]) for row in read_rows(output)] == [30, 40, 70]
    state = read_checkpoint(str(last))
    assert (state["frames"], state["gradient_steps"]) == (70, 15)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sampled-steps", "3"], "--sampled-steps must be at most --denoising-steps 2, got 3"),
        (["--target-steps", "0"], "--target-steps must be at least 1, got 0"),
        (["--critic-head", "c51"], "--critic-head must be one of scalar, hl_gauss, got 'c51'"),
        (["--critic-head", "hl_gauss"], "--critic-head hl_gauss needs --value-range MIN MAX"),
        (["--value-range", "0", "1"], "--value-range is for --critic-head hl_gauss"),
        (
            ["--critic-normalization", "batch"],
            "--delay-critic does not go with --critic-normalization batch",
        ),
        (["--prior-std", "0"], "--prior-std must be greater than 0"),
        (["--step-size", "20"], "step_size is too large"),
        (["--env", "CartPole-v1"], "only continuous actions"),
    ],
)
def test_wrong_flags_are_one_sentence(
    main: Main, tmp_path: Path, flags: list[str], message: str, error_line: ErrorLine
) -> None:
    assert message in error_line(main, [*SMALL, *flags, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_help_names_the_flags(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in (
        *("--squashed-entropy", "--fresh-chains", "--center-entropy"),
        *("--sampled-steps", "--target-steps", "--critic-head scalar|hl_gauss", "--value-range"),
        *("--discount-mode", "--tau", "--policy-delay", "--gpus", "--cpu-ranks", "--resume"),
    ):
        assert flag in text
