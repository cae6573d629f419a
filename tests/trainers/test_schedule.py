"""The learning rate of a run that is made longer or shorter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpolicy.trainers import DiffPPOConfig, prepare, train
from diffpolicy.trainers.io.signals import StopSignal
from diffpolicy.trainers.loops.schedule import LinearSchedule

SmallConfig = Callable[..., DiffPPOConfig]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]


def test_it_falls_linearly_to_zero_and_stays_there() -> None:
    assert [LinearSchedule().at(n, 400) for n in (0, 100, 300, 400, 450)] == [1, 0.75, 0.25, 0, 0]
    later = LinearSchedule(start=100, factor=0.5)
    assert [later.at(frames, 300) for frames in (100, 200, 300)] == [0.5, 0.25, 0]


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("total", [512, 640, 1024])
def test_a_stopped_run_goes_on_from_the_learning_rate_it_has_reached(
    small_config: SmallConfig,
    read_run: ReadRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    schedule: str,
    total: int,
) -> None:
    """Stopped after 256 of 512 steps, and once more 128 steps later; 128 are an iteration."""
    options = {"lr": 1e-3, "lr_schedule": schedule, "epochs": 1}
    for frames, given in ((256, {"total_frames": 512}), (384, {"resume": "last"})):
        run = prepare(small_config(**{**options, "total_frames": total, **given}))
        stop = StopSignal()
        monkeypatch.setattr(
            stop,
            "requested",
            lambda module=run.module, until=frames: module.progress.frames >= until,
        )
        assert not train(run, stop)
    warned = "warning: --total-frames was 512" in capsys.readouterr().err
    assert warned == (total != 512 and schedule == "linear")
    assert train(prepare(small_config(**options, resume="last", total_frames=total)))
    # The second time it was the same: the first change is in the checkpoint.
    assert "--total-frames was" not in capsys.readouterr().err
    rates = [float(row["lr"]) for row in read_run(run.output)[1]]
    left = range(total - 256, 0, -128)
    falling = [1e-3, 7.5e-4, *(5e-4 * frames / (total - 256) for frames in left)]
    assert rates == pytest.approx(falling if schedule == "linear" else [1e-3] * len(falling))


def test_a_finished_run_that_is_made_longer_learns_again_and_says_so(
    small_config: SmallConfig, read_run: ReadRun, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"lr": 1e-3, "epochs": 1}
    assert train(prepare(small_config(**options, total_frames=128)))
    run = prepare(small_config(**options, resume="last", total_frames=512))
    assert train(run)
    said = capsys.readouterr().err
    assert (
        "the learning rate had fallen to zero at --total-frames 128; it goes on with 0.75" in said
    )
    rates = [float(row["lr"]) for row in read_run(run.output)[1]]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_noise_of_a_chain_falls_along_with_the_learning_rate(
    small_config: SmallConfig, read_run: ReadRun, schedule: str
) -> None:
    options = {
        "initial_noise_scale": 2.0,
        "final_noise_scale": 0.5,
        "lr_schedule": schedule,
        "lr_process": 0.0,
        "epochs": 1,
    }
    run = prepare(small_config(**options, total_frames=512))
    process = run.module.actor.process
    plain = float(process.noise_std(process.step_sizes().detach()).mean())
    assert train(run)
    rows = read_run(run.output)[1]
    # That of the iteration that has just been collected.
    factors = [float(row["noise_std_mean"]) / plain for row in rows]
    expected = [2.0, 1.625, 1.25, 0.875] if schedule == "linear" else [2.0] * 4
    assert factors == pytest.approx(expected, rel=1e-4)
    left = 0.5 if schedule == "linear" else 2.0
    assert float(process.noise_scale) == pytest.approx(left)


def test_a_checkpoint_of_old_goes_on_with_a_noise_scale_of_one(small_config: SmallConfig) -> None:
    options = {"lr_schedule": "constant", "epochs": 1, "initial_noise_scale": 1.0}
    run = prepare(small_config(**options, total_frames=128))
    assert train(run)
    last = run.output / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    name = "loss.actor_network_params.process.noise_scale"
    assert float(content["state_dict"].pop(name)) == 1
    del content["diffpolicy"]["metadata"]["shapes"][name]
    torch.save(content, last)

    longer = prepare(small_config(**options, resume="last", total_frames=256))

    assert train(longer)
    assert float(longer.module.actor.process.noise_scale) == 1


def test_a_run_from_another_policy_starts_with_the_noise_that_clones_are_trained_for(
    small_config: SmallConfig, read_run: ReadRun, tmp_path: Path
) -> None:
    first = prepare(small_config(epochs=1, total_frames=128, lr_process=0.0))
    assert train(first)
    assert float(first.module.actor.process.noise_scale) == 1
    options = {"output": str(tmp_path / "second"), "init_from": str(first.output)}
    second = prepare(small_config(**options, epochs=1, total_frames=128, lr_process=0.0))
    assert train(second)
    noise = [float(read_run(run.output)[1][0]["noise_std_mean"]) for run in (first, second)]
    assert noise[0] / noise[1] == pytest.approx(1.4, rel=1e-4)
