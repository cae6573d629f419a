"""The training script, run as a user would run it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import diffpolicy.trainers.loops.on_policy as on_policy
from objectives import DiffPPOLoss

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "diffppo_lightning.py"
# 128 environment steps in an iteration.
SMALL_OPTIONS = {
    "--num-envs": 4,
    "--rollout-steps": 32,
    "--epochs": 2,
    "--minibatch-size": 128,
    "--denoising-steps": 2,
    "--actor-hidden-sizes": 16,
    "--critic-hidden-sizes": 16,
    "--eval-episodes": 2,
    "--eval-every": 256,
    "--checkpoint-every": 256,
}
SMALL = [str(word) for option in SMALL_OPTIONS.items() for word in option]
EVALUATION_KEYS = {"env_steps", "return_mean", "return_std", "episodes"}
RESULT_KEYS = {
    "method",
    "env",
    "seed",
    "env_steps",
    "gradient_steps",
    "wall_seconds",
    "frames_per_second",
    "config",
    "versions",
    "evaluations",
}

Main = Callable[[list[str]], int]
AfterIterations = Callable[[pytest.MonkeyPatch, int, Callable[[], Any]], None]
ReadRows = Callable[[Path], list[dict[str, str]]]
ErrorLine = Callable[[Main, list[str]], str]


@pytest.fixture(scope="module")
def main(load_main: Callable[[str], Main]) -> Main:
    return load_main("diffppo_lightning")


@pytest.fixture(scope="module")
def finished_run(main: Main, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    code = main([*SMALL, "--total-frames", "1000", "--seed", "5", "--output", str(output)])
    assert code == 0
    return output


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def read_results(output: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


# ---------------------------------------------------------------------------------------------
# The output folder


def test_the_output_folder_holds_every_file(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    expected = {"config.yaml", "metrics.csv", "timing.csv", "results.json", "returns.png"}
    assert names == expected | {"tensorboard", "checkpoints", ".lock"}
    assert {path.name for path in (finished_run / "checkpoints").iterdir()} == {
        "last.ckpt",
        "frames_0000000256.ckpt",
        "frames_0000000512.ckpt",
        "frames_0000000768.ckpt",
        "frames_0000001024.ckpt",
    }


def test_results_tell_what_was_run(finished_run: Path) -> None:
    results = read_results(finished_run)
    assert results.keys() == RESULT_KEYS
    assert results["method"] == "diffppo"
    assert results["env"] == "InvertedPendulum-v5"
    assert results["seed"] == 5
    # Rounded up to whole iterations: 8 of 128 steps with 2 epochs of 2 minibatches.
    assert results["env_steps"] == 1024
    assert results["gradient_steps"] == 32
    assert results["wall_seconds"] > 0
    assert results["frames_per_second"] == pytest.approx(1024 / results["wall_seconds"], rel=0.01)
    assert results["config"]["total_frames"] == 1000
    assert results["config"]["denoising_steps"] == 2
    assert results["versions"]["torch"] == torch.__version__
    assert [e["env_steps"] for e in results["evaluations"]] == [0, 256, 512, 768, 1024]
    for evaluation in results["evaluations"]:
        assert evaluation.keys() == EVALUATION_KEYS
        assert evaluation["episodes"] == 2
        assert evaluation["return_mean"] > 0


def test_the_configuration_is_saved(finished_run: Path) -> None:
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert config["method"] == "diffppo"
    assert config["seed"] == 5
    saved = read_results(finished_run)["config"]
    kept = {name: value for name, value in saved.items() if name not in ("output", "resume")}
    assert config == {"method": "diffppo", **kept}


def test_metrics_have_one_row_for_each_iteration(finished_run: Path, read_rows: ReadRows) -> None:
    rows = read_rows(finished_run)
    assert [int(row["frames"]) for row in rows] == [128 * i for i in range(1, 9)]
    assert [int(row["gradient_steps"]) for row in rows] == [4 * i for i in range(1, 9)]
    required = {
        "episodes",
        "episode_return",
        "episode_length",
        "updates",
        "lr",
        "grad_norm",
        "loss_objective",
        "loss_noising",
        "loss_critic",
        "kl",
        "clip_fraction",
        "entropy_bound",
        "alpha",
        "explained_variance",
        "step_size_mean",
        "friction",
        "eval_return_mean",
        "eval_return_std",
    }
    assert required <= rows[0].keys()
    for row in rows:
        always = required - {"eval_return_mean", "eval_return_std"}
        assert all(abs(float(row[name])) < 1e9 for name in always), row
    # The pendulum pays 1 for each step but the last.
    for row in rows:
        assert float(row["episode_return"]) == pytest.approx(float(row["episode_length"]) - 1)


def test_tensorboard_has_the_metrics_against_frames(
    finished_run: Path, read_rows: ReadRows
) -> None:
    events = EventAccumulator(str(finished_run / "tensorboard"))
    events.Reload()
    losses = events.Scalars("loss_critic")
    assert [event.step for event in losses] == [128 * i for i in range(1, 9)]
    written = [float(row["loss_critic"]) for row in read_rows(finished_run)]
    assert [event.value for event in losses] == pytest.approx(written)
    assert [e.step for e in events.Scalars("eval_return_mean")] == [0, 256, 512, 768, 1024]


def test_the_learning_curve_is_a_picture(finished_run: Path) -> None:
    assert (finished_run / "returns.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_hold_plain_tensors_only(finished_run: Path) -> None:
    path = finished_run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["diffpolicy"]["frames"] == 1024
    assert checkpoint["optimizer_states"]
    assert checkpoint["state_dict"]


# ---------------------------------------------------------------------------------------------
# Resuming


def test_resume_continues_counters_rows_and_evaluations(
    main: Main, copied_run: Path, read_rows: ReadRows
) -> None:
    earlier = read_results(copied_run)
    rows = read_rows(copied_run)
    last = copied_run / "checkpoints" / "last.ckpt"
    assert main(["--resume", str(last), "--total-frames", "1280"]) == 0
    results = read_results(copied_run)
    assert results["env_steps"] == 1280
    assert results["gradient_steps"] == 40
    assert results["seed"] == 5, "flags that are not given keep the checkpoint's values"
    assert results["wall_seconds"] > earlier["wall_seconds"]
    assert results["evaluations"][:5] == earlier["evaluations"]
    assert [e["env_steps"] for e in results["evaluations"][5:]] == [1280]
    assert read_rows(copied_run)[:8] == rows
    assert [int(row["frames"]) for row in read_rows(copied_run)[8:]] == [1152, 1280]


def test_resume_from_an_earlier_checkpoint_drops_the_rows_it_repeats(
    main: Main, copied_run: Path, read_rows: ReadRows
) -> None:
    rows = read_rows(copied_run)
    middle = copied_run / "checkpoints" / "frames_0000000512.ckpt"
    assert main(["--resume", str(middle), "--total-frames", "700"]) == 0
    assert [int(row["frames"]) for row in read_rows(copied_run)] == [128, 256, 384, 512, 640, 768]
    assert read_rows(copied_run)[:4] == rows[:4]
    evaluations = read_results(copied_run)["evaluations"]
    assert [e["env_steps"] for e in evaluations] == [0, 256, 512, 768]


def test_resume_starts_from_the_saved_networks_and_optimiser(main: Main, copied_run: Path) -> None:
    last = copied_run / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)
    flags = ["--total-frames", "1152", "--lr", "1e-30", "--gamma", "0.5"]
    flags += ["--lr-process", "1"]
    assert main(["--resume", str(last), *flags]) == 0
    after = torch.load(last, weights_only=True)
    for name, value in before["state_dict"].items():
        if name.endswith(("weight", "bias")):
            assert torch.equal(after["state_dict"][name], value), name
    steps = [state["optimizer_states"][0]["state"][0]["step"].item() for state in (before, after)]
    assert steps == [32, 36]
    # Flags that are given take effect, although their values are saved with the state, too.
    friction = "loss.actor_network_params.process.raw_friction"
    assert not torch.equal(after["state_dict"][friction], before["state_dict"][friction])
    assert after["state_dict"]["loss._value_estimator.gamma"] == 0.5


def test_resuming_twice_gives_the_same_run_on_new_episodes(
    main: Main, finished_run: Path, tmp_path: Path, read_rows: ReadRows
) -> None:
    last = finished_run / "checkpoints" / "last.ckpt"
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        argv = ["--resume", str(last), "--total-frames", "1152", "--output", str(output)]
        assert main(argv) == 0
    states = [
        torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for output in outputs
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert [int(row["frames"]) for row in read_rows(outputs[0])] == [1152]


# ---------------------------------------------------------------------------------------------
# Several ranks


def test_two_cpu_ranks_share_the_work(main: Main, tmp_path: Path, read_rows: ReadRows) -> None:
    output = tmp_path / "run"
    argv = [*SMALL, "--cpu-ranks", "2", "--total-frames", "500", "--output", str(output)]
    assert main(argv) == 0
    results = read_results(output)
    assert results["env_steps"] == 512
    assert results["gradient_steps"] == 2 * 4
    assert [e["env_steps"] for e in results["evaluations"]] == [0, 256, 512]
    # A run may be continued with another number of ranks.
    last = output / "checkpoints" / "last.ckpt"
    assert main(["--resume", str(last), "--total-frames", "640", "--cpu-ranks", "1"]) == 0
    assert [int(row["frames"]) for row in read_rows(output)] == [256, 512, 640]


def test_more_gpus_than_there_are_is_refused_and_names_the_rehearsal(
    main: Main, monkeypatch: pytest.MonkeyPatch, error_line: ErrorLine
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    error = error_line(main, ["--gpus", "4"])
    assert "--gpus 4 needs 4 CUDA devices and this machine has 1" in error
    assert "--cpu-ranks 4" in error


# ---------------------------------------------------------------------------------------------
# Interruption and failure


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_ctrl_c_ends_cleanly_with_a_checkpoint(
    main: Main,
    after_iterations: AfterIterations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    cpu_ranks: int,
) -> None:
    output, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    argv = [*SMALL, "--eval-every", "100000", "--cpu-ranks", str(cpu_ranks)]
    with monkeypatch.context() as patch:
        after_iterations(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        assert main([*argv, "--total-frames", "100000", "--output", str(output)]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    frames = 3 * 128 * cpu_ranks
    last = output / "checkpoints" / "last.ckpt"
    assert read_results(output)["env_steps"] == frames
    assert torch.load(last, weights_only=True)["diffpolicy"]["frames"] == frames
    assert f"--resume {last}" in capfd.readouterr().out
    assert main(["--resume", str(last), "--total-frames", str(frames + 1)]) == 0
    assert read_results(output)["env_steps"] == frames + 128 * cpu_ranks


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_a_second_ctrl_c_ends_at_once_and_keeps_the_checkpoint(
    main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    cpu_ranks: int,
) -> None:
    def interrupted_twice(rollout: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(on_policy, "episode_stats", interrupted_twice)
    output = tmp_path / "run"
    argv = [*SMALL, "--cpu-ranks", str(cpu_ranks), "--total-frames", "1000"]
    assert main([*argv, "--output", str(output)]) == 130
    last = output / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["diffpolicy"]["frames"] == 0
    captured = capfd.readouterr()
    assert f"--resume {last}" in captured.out
    assert "Terminating" not in captured.err


def test_a_nan_loss_ends_with_an_error_that_names_it(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    critic_loss = DiffPPOLoss.critic_loss

    def broken(self: DiffPPOLoss, rows: Any) -> Any:
        value, diagnostics = critic_loss(self, rows)
        return value * float("nan"), diagnostics

    monkeypatch.setattr(DiffPPOLoss, "critic_loss", broken)
    output = tmp_path / "run"
    assert main([*SMALL, "--total-frames", "1000", "--output", str(output)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "loss_critic is nan" in error
    assert str(output / "checkpoints" / "last.ckpt") in error
    assert (output / "checkpoints" / "last.ckpt").exists()


# ---------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--env", "InvertedPendulm-v5"], ["--env", "InvertedPendulm-v5", "InvertedPendulum-v5"]),
        (["--env", "CartPole-v1"], ["--env", "CartPole-v1", "continuous"]),
        (["--total-frames", "0"], ["--total-frames", "0"]),
        (["--total-frames", "many"], ["--total-frames", "many"]),
        (["--minibatch-size", "99999"], ["--minibatch-size", "99999", "8192"]),
        (["--logger", "mlflow"], ["--logger", "mlflow", "tensorboard"]),
        (["--lr", "-1"], ["--lr", "-1"]),
        (["--frames", "5"], ["--frames"]),
        (["--resume", "nowhere.ckpt"], ["--resume", "nowhere.ckpt"]),
        (["--resume", __file__], ["--resume", "checkpoint"]),
        (["--output", __file__], ["--output", "folder"]),
        (["--observation-keys", "body"], ["--observation-keys body", "choose from observation."]),
        (
            ["--learn-temperature", "--temperature", "0"],
            ["--temperature", "0.0", "--no-learn-temperature"],
        ),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(
    main: Main,
    argv: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_line: ErrorLine,
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_line(main, argv)
    assert all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"text", b"hello world", b""])
def test_a_file_that_is_no_checkpoint_is_refused(
    main: Main, tmp_path: Path, content: bytes, error_line: ErrorLine
) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    assert f"--resume {file} is not a readable checkpoint" in error_line(
        main, ["--resume", str(file)]
    )


def test_a_run_is_not_overwritten(main: Main, finished_run: Path, error_line: ErrorLine) -> None:
    before = (finished_run / "results.json").read_bytes()
    error = error_line(main, [*SMALL, "--output", str(finished_run)])
    assert "--output" in error
    assert "--resume" in error
    assert (finished_run / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--env", "Pendulum-v1"], ["--env InvertedPendulum-v5", "Pendulum-v1"]),
        (["--denoising-steps", "3"], ["--denoising-steps 2", "3"]),
        (["--actor-hidden-sizes", "32"], ["--actor-hidden-sizes (16,)", "(32,)"]),
        (["--total-frames", "1024"], ["--total-frames", "1024"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    main: Main, finished_run: Path, flags: list[str], words: list[str], error_line: ErrorLine
) -> None:
    last = finished_run / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    error = error_line(main, ["--total-frames", "5000", "--resume", str(last), *flags])
    assert all(word in error for word in words), error
    assert last.read_bytes() == before


def test_a_checkpoint_of_another_method_is_refused(
    main: Main, copied_run: Path, error_line: ErrorLine
) -> None:
    last = copied_run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["diffpolicy"]["metadata"]["method"] = "gaussian_ppo"
    torch.save(checkpoint, last)
    error = error_line(main, ["--resume", str(last), "--total-frames", "5000"])
    assert "gaussian_ppo" in error
    assert "diffppo" in error


# ---------------------------------------------------------------------------------------------
# The console


def run_script(script: Path, argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(script), *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("cpu_ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_the_console_shows_our_own_lines_only(tmp_path: Path, cpu_ranks: str) -> None:
    output = tmp_path / "run"
    argv = [*SMALL, "--total-frames", "128", "--cpu-ranks", cpu_ranks, "--output", str(output)]
    done = run_script(SCRIPT, argv, tmp_path)
    lines = done.stdout.splitlines()
    steps = 128 * int(cpu_ranks)
    assert lines[0].startswith("evaluation at 0 frames: return ")
    assert lines[1].startswith(f"evaluation at {steps} frames: return ")
    assert lines[2:] == [f"finished; results are in {output}"]
    shown = [part.strip() for part in done.stderr.replace("\n", "\r").split("\r") if part.strip()]
    assert shown[0] == shown[-1] == "reads observation (4); drives 1 action(s) in [-3, 3]"
    assert all("frames [" in part for part in shown[1:-1]), done.stderr
    assert "return" in shown[-2]
    assert "frames/s" in shown[-2]
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "MUJOCO_LOG.TXT"}


# How --gpus starts its ranks, rehearsed without a GPU: the script runs once more for each of them.
LAUNCHED_SCRIPT = """
import sys
from lightning.pytorch.strategies import DDPStrategy
import diffpolicy.trainers.run.launch as launch
from diffpolicy.trainers import METHODS, run_script

launch._strategy = lambda config: DDPStrategy(broadcast_buffers=False)

if __name__ == "__main__":
    sys.exit(run_script(METHODS["diffppo"]))
"""


@pytest.mark.slow
def test_ranks_that_run_the_script_anew_work_in_one_folder(
    tmp_path: Path, read_rows: ReadRows
) -> None:
    script = tmp_path / "train.py"
    script.write_text(LAUNCHED_SCRIPT)
    done = run_script(script, [*SMALL, "--cpu-ranks", "2", "--total-frames", "256"], tmp_path)
    (output,) = (tmp_path / "runs").iterdir()
    assert read_results(output)["env_steps"] == 256
    assert [int(row["frames"]) for row in read_rows(output)] == [256]
    assert done.stdout.splitlines()[2:] == [f"finished; results are in runs/{output.name}"]


# ---------------------------------------------------------------------------------------------
# Minutes


@pytest.mark.slow
def test_a_compiled_run_can_be_continued_without_compiling(
    main: Main, tmp_path: Path, read_rows: ReadRows
) -> None:
    output = tmp_path / "run"
    assert main([*SMALL, "--total-frames", "256", "--compile", "--output", str(output)]) == 0
    last = output / "checkpoints" / "last.ckpt"
    assert main(["--resume", str(last), "--total-frames", "384", "--no-compile"]) == 0
    assert [int(row["frames"]) for row in read_rows(output)] == [128, 256, 384]
    # Before the first step of an iteration the ratio of new to old probabilities is one: the
    # compiled loss computes what the compiled policy has sampled.
    assert all(float(row["kl"]) < 0.05 for row in read_rows(output))


@pytest.mark.slow
def test_the_defaults_balance_the_pendulum(main: Main, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(["--total-frames", "60000", "--output", str(output)]) == 0
    evaluations = read_results(output)["evaluations"]
    assert evaluations[0]["return_mean"] < 50
    assert evaluations[-1]["return_mean"] > 800
