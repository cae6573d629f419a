"""What a run tells loggers, the console and checkpoints; what is said about environments."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from small_methods import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import diffpolicy
from collectors import make_env
from diffpolicy.trainers import RLModule, RunCallback, prepare, train
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.run.callbacks import ProgressBar
from diffpolicy.trainers.run.loggers import ForgivingLogger


def test_tensorboard_has_the_options_beside_the_evaluations(tmp_path: Path) -> None:
    config = small_config("dime", output=str(tmp_path / "run"), logger=("tensorboard",))
    train(prepare(config), progress_bar=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    told = events.PluginTagToContent("hparams")
    options, metrics = (told[f"_hparams_/{name}"] for name in ("session_start_info", "experiment"))
    for name in (b"method", b"dime", b"learning_starts", b"actor_hidden_sizes", b"(8,)"):
        assert name in options
    assert b"eval_return_mean" in metrics
    # No evaluation is logged twice.
    assert [e.step for e in events.Scalars("eval_return_mean")] == [0, 120]
    assert [e.step for e in events.Scalars("eval_return_std")] == [0, 120]


def test_other_loggers_get_the_options_as_they_are() -> None:
    calls: list[tuple[str, Any]] = []

    class Kept(DummyLogger):
        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            calls.append(("options", params))

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            calls.append(("metrics", (metrics, step)))

    ForgivingLogger(Kept()).log_options({"lr": 1e-3, "sizes": (8, 8)}, {"eval_return_mean": 2.0}, 5)
    assert calls == [
        ("options", {"lr": 1e-3, "sizes": (8, 8)}),
        ("metrics", ({"eval_return_mean": 2.0}, 5)),
    ]


def test_the_bar_moves_while_the_buffer_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []

    class Look(RunCallback):
        def on_collected(self, trainer: L.Trainer, module: RLModule, frames: int) -> None:
            bar = next(c for c in module.run_callbacks() if isinstance(c, ProgressBar))
            seen.append((bar._bar.n, bar._bar.postfix))

    options = {"learning_starts": 200, "total_frames": 240, "output": str(tmp_path / "run")}
    train(prepare(small_config("dime", **options)), callbacks=[Look()])
    assert seen == [(n, ", filling the replay buffer") for n in (100, 200)] or seen == [
        (n, "filling the replay buffer") for n in (100, 200)
    ]


def test_the_clock_of_the_bar_runs_during_the_first_update_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bar:
        words = ""

        def set_postfix_str(self, words: str, refresh: bool) -> None:
            self.words = words

        def refresh(self) -> None: ...

        def close(self) -> None: ...

    progress: Any = ProgressBar()
    bar = progress._bar = Bar()
    module: Any = copy.copy(prepare(small_config("dime")).module)
    module.config = replace(module.config, compile=True)
    arguments: Any = (None, module, None, 0)
    progress.on_train_batch_start(*arguments)
    assert bar.words == "compiling the first updates"
    clock = progress._clock
    assert clock.is_alive()
    progress.on_train_batch_end(None, module, None, None, 0)
    assert not clock.is_alive()
    progress.on_train_batch_start(*arguments)
    assert progress._clock is None


def test_checkpoints_of_another_version_are_named(dime_run: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.of_run(dime_run, "run")
    assert checkpoint.version in (diffpolicy.__version__, "not installed")
    content = copy.deepcopy(checkpoint.content)
    content["diffpolicy"]["versions"]["diffpolicy"] = "0.0.7"
    torch.save(content, path := tmp_path / "old.ckpt")
    config = small_config("dime", critic_hidden_sizes=(4,), total_frames=500, resume=str(path))
    note = rf"written by diffpolicy 0\.0\.7, and this is {diffpolicy.__version__}"
    with pytest.raises(ValueError, match=note):
        prepare(config)
    with pytest.raises(ValueError, match="cannot change to") as raised:
        prepare(replace(config, resume=str(checkpoint.path)))
    assert "written by" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("HalfCheetah-v2", "needs mujoco-py, which is not maintained any more; use HalfCheetah-v5"),
        ("Hopper-v3", "use Hopper-v5"),
    ],
)
def test_an_old_version_names_the_new_one(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_env(name)


def test_an_environment_says_which_package_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium as gym

    def lacking(*args: Any, **kwargs: Any) -> Any:
        raise gym.error.DependencyNotInstalled('Box2D is not installed, run `pip install "box2d"`')

    monkeypatch.setattr(gym, "make", lacking)
    with pytest.raises(ValueError, match="cannot be built: Box2D is not installed, run"):
        make_env("CarRacing-v3")
