"""Trained policies that are filmed, watched, exported and shared."""

import json
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from diffpolicy.cli import main


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def wrong(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(list(words))
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_a_video_has_a_picture_for_every_step_of_the_evaluation(
    dime_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = tmp_path / "a.mp4"
    acting = ("--eval-policy", "deterministic", "--episodes", "2")
    said = lines(capsys, "record", str(dime_run), *acting, "--output", str(film))
    assert said[-1] == f"the video is in {film}"
    # 20 steps of each episode, and how it ended.
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(film))
    assert frames == 42
    returns = [float(line.split("return ")[1].split(",")[0]) for line in said[:2]]
    (evaluation,) = lines(capsys, "eval", str(dime_run), *acting, "--json")
    assert sum(returns) / 2 == pytest.approx(json.loads(evaluation)["return_mean"], abs=0.1)


def test_a_video_is_kept_with_its_run(dime_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = dime_run / "episodes.gif"
    lines(capsys, "record", str(dime_run), "--episodes", "1", "--output", str(film))
    assert film.read_bytes().startswith(b"GIF")
    lines(capsys, "record", str(dime_run), "--episodes", "1", "--eval-policy", "stochastic")
    assert (dime_run / "episodes.mp4").read_bytes()[4:8] == b"ftyp"


def test_an_exported_policy_is_kept_with_its_run(
    dime_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export", str(dime_run), "--format", "torch", "--mode", "flow")
    assert lines(capsys, *words) == [
        f"{dime_run / 'policy.pt2'}: mode flow, 2 denoising steps, checked against the policy"
    ]
    assert (dime_run / "policy.pt2").stat().st_size > 1000
    assert "mode" in wrong(capsys, "export", str(dime_run), "--mode", "best")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["record", "nowhere"], "policy nowhere is neither a file nor a folder"),
        (["record", "RUN", "--episodes", "0"], "--episodes must be at least 1, got 0."),
        (["record", "RUN", "--output", "x.avi"], "--output must end with .mp4 or .gif, got x.avi."),
        (["record", "RUN", "--denoising-steps", "0"], "--denoising-steps 0 must be"),
        (["record", "RUN", "--env", "GMMBandit-v0"], "--env GMMBandit-v0 cannot be drawn"),
        (["play", "RUN"], "there is no display to open a window on"),
        (["export", "nowhere"], "nowhere is neither a file nor a folder"),
        (["push", "nowhere", "me/it"], "nowhere is neither a file nor a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str],
    message: str,
    dime_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    given = [str(dime_run) if word == "RUN" else word for word in words]
    assert message in wrong(capsys, *given)


def test_a_policy_goes_to_the_hub_and_comes_back(
    dime_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from diffpolicy import Policy, load_policy

    hub = tmp_path / "hub"

    def push(policy: Policy, repository: str, **options: Any) -> str:
        assert options == {"private": True, "license": "mit"}
        policy.save_pretrained(hub / repository)
        return f"https://hub/{repository}"

    def pull(source: str, revision: str | None = None) -> Policy:
        return load_policy(hub / source)

    monkeypatch.setattr(Policy, "push_to_hub", push)
    monkeypatch.setattr(Policy, "from_pretrained", pull)
    words = ("push", str(dime_run), "me/it", "--private", "--license", "mit")
    assert lines(capsys, *words) == ["https://hub/me/it"]
    back = tmp_path / "back"
    (said,) = lines(capsys, "pull", "me/it", str(back))
    assert said.startswith("Policy(dime on Pendulum-v1;")
    assert lines(capsys, "record", str(back), "--episodes", "1", "--output", str(back / "a.gif"))
    assert "exists; give another FOLDER" in wrong(capsys, "pull", "me/it", str(back))
