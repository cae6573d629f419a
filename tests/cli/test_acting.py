"""Trained policies that are filmed, watched, exported and shared."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from small_methods import small_words

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


def test_what_envpool_has_trained_is_drawn_by_gymnasium(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("envpool")
    run = str(tmp_path / "run")
    options = {"env_source": "envpool", "total_frames": 40, "env_kwargs": "{num_threads: 1}"}
    assert main(["train", "diffppo", *small_words("diffppo", **options), "--output", run]) == 0
    capsys.readouterr()
    assert main(["record", run, "--episodes", "1", "--output", str(tmp_path / "a.gif")]) == 0
    said = "EnvPool draws nothing here: this is Pendulum-v1 of Gymnasium\n"
    assert capsys.readouterr().err == said
    (line,) = lines(capsys, "eval", run, "--json")
    assert json.loads(line)["env"] == "Pendulum-v1"


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
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    given = [str(dime_run) if word == "RUN" else word for word in words]
    assert message in wrong(capsys, *given)


def test_a_window_is_opened_by_pygame(
    dime_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks at it here; the steps of the policy are those of the evaluation."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    acting = ("--eval-policy", "deterministic", "--episodes", "2")
    said = lines(capsys, "play", str(dime_run), *acting)
    returns = [float(line.split("return ")[1].split(",")[0]) for line in said]
    (evaluation,) = lines(capsys, "eval", str(dime_run), *acting, "--json")
    assert len(returns) == 2
    assert sum(returns) / 2 == pytest.approx(json.loads(evaluation)["return_mean"], abs=0.1)


def test_a_window_that_mujoco_does_not_get_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GLFW would end the process."""
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":987")
    said = wrong(capsys, "play", "pretrained:diffppo-InvertedPendulum-v5", "--episodes", "1")
    assert "--env InvertedPendulum-v5 cannot be drawn (RuntimeError: GLFW opens no window" in said
    assert "MUJOCO_GL" in said


def make_torchrl(render_mode: str = "human") -> Any:
    """An environment that does not draw itself."""
    from torchrl.envs import GymEnv

    return GymEnv("InvertedPendulum-v5")


def make_blind() -> Any:
    """A factory that cannot be asked to draw."""
    import gymnasium as gym

    return gym.make("InvertedPendulum-v5")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (make_torchrl, "only Gymnasium's draw themselves"),
        (make_blind, "unexpected keyword argument 'render_mode'"),
    ],
)
def test_environments_without_a_window(
    factory: Any,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    module = types.ModuleType("factories_of_this_test")
    module.make = factory  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = f"{module.__name__}:make"
    said = wrong(capsys, "play", "pretrained:diffppo-InvertedPendulum-v5", "--env", env)
    assert f"--env {env} cannot be drawn" in said
    assert message in said


def test_a_film_of_a_policy_that_remembers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = small_words("diffppo", frame_stack=2, action_chunk=3, rollout_steps=7, total_frames=40)
    assert main(["train", "diffppo", *words, "--output", str(run)]) == 0
    acting = ("--eval-policy", "deterministic", "--episodes", "2")
    film = str(tmp_path / "a.gif")
    said = lines(capsys, "record", str(run), *acting, "--output", film)
    returns = [float(line.split("return ")[1].split(",")[0]) for line in said[:2]]
    (evaluation,) = lines(capsys, "eval", str(run), *acting, "--json")
    assert sum(returns) / 2 == pytest.approx(json.loads(evaluation)["return_mean"], abs=0.1)


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
