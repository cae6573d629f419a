"""Methods as classes: make one, learn, evaluate, save, go on."""

import csv
import json
import math
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from small_methods import small_options

import diffpolicy
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers import LEARNERS, METHODS, Evaluation, Learner, RLModule, RunCallback


def small(name: str, folder: Path | None = None, **options: Any) -> Learner:
    """A learner of a small run; its method's name is that of the registry."""
    given = small_options(METHODS[name], **options)
    given.pop("total_frames")
    env = given.pop("env")
    learner = next(cls for cls in LEARNERS.values() if cls.method.name == name)
    return learner(env, **given, **({} if folder is None else {"output": str(folder)}))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_method_is_a_class_of_the_package() -> None:
    names = {"DIME", "DiffPPO", "DiffSAC", "DiffWPO", "GaussianPPO", "GaussianWPO", "SAC"}
    assert names <= LEARNERS.keys()
    assert {learner.method.name for learner in LEARNERS.values()} == METHODS.keys()
    for name, learner in LEARNERS.items():
        assert getattr(diffpolicy, name) is learner
        assert learner.method.summary in (learner.__doc__ or "")
    with pytest.raises(AttributeError, match=r"has no attribute 'DIMEE'; did you mean DIME\?"):
        diffpolicy.DIMEE  # noqa: B018
    assert not hasattr(diffpolicy, "dime")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return small("dime", tmp_path_factory.mktemp("learned") / "run").learn(120, progress_bar=False)


def test_learning_makes_a_run(learned: Learner) -> None:
    assert learned.frames == 120
    results = json.loads((learned.folder / "results.json").read_text())
    assert (results["env_steps"], results["gradient_steps"]) == (120, 20)
    assert [int(row["frames"]) for row in rows(learned.folder)] == [80, 120]
    found = learned.evaluate(episodes=2)
    assert found == Evaluation(**results["evaluations"][-1])
    assert learned.evaluate(episodes=2, seed=5) != found


def test_learning_again_goes_on_and_a_saved_learner_does_the_same(
    learned: Learner, tmp_path: Path
) -> None:
    for name in ("saved", "other"):
        learned.save(tmp_path / name)
    names = {path.name for path in (tmp_path / "saved" / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "frames_0000000120-" + next(iter(names - {"last.ckpt"}))[18:]}
    copies = [type(learned).load(tmp_path / name) for name in ("saved", "other")]
    assert [copy.frames for copy in copies] == [120, 120]
    copies[0].learn(40, progress_bar=False).learn(40, progress_bar=False)
    copies[1].learn(80, progress_bar=False)
    for copy in copies:
        assert copy.frames == 200
        assert [int(row["frames"]) for row in rows(copy.folder)] == [80, 120, 160, 200]
    ours, theirs = (copy.module().state_dict() for copy in copies)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ArgumentError, match="saved' exists; give a new one"):
        learned.save(tmp_path / "saved")
    with pytest.raises(ArgumentError, match="is a run of dime, and SAC goes on with sac"):
        diffpolicy.SAC.load(tmp_path / "saved")


def test_a_learner_that_has_not_learned_says_so(tmp_path: Path) -> None:
    learner = small("dime")
    assert learner.frames == 0
    for act in (learner.evaluate, learner.module, lambda: learner.save(tmp_path / "x")):
        with pytest.raises(RuntimeError, match="this DIME has learned nothing yet; call learn"):
            act()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_acter": 1.0}, "is no option of dime; did you mean lr_actor?"),
        ({"total_frames": 10}, r"is not an option: call learn\(total_frames\)"),
        ({"resume": "x"}, r"is not an option: call load\(folder\)"),
        ({"gamma": 2.0}, "--gamma must be between 0 and 1, got 2.0"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffpolicy.DIME("Pendulum-v1", **options)


# ---------------------------------------------------------------------------------------------
# Callbacks


class Listening(RunCallback):
    """Keeps what it hears, and stops the run at an evaluation."""

    def __init__(self, stop_at: int) -> None:
        self.heard: list[tuple[str, int]] = []
        self.stop_at = stop_at

    def on_collected(self, trainer: L.Trainer, module: RLModule, frames: int) -> None:
        self.heard.append(("collected", frames))

    def on_evaluation(self, trainer: L.Trainer, module: RLModule, evaluation: Evaluation) -> None:
        self.heard.append(("evaluation", evaluation.env_steps))
        if evaluation.env_steps >= self.stop_at:
            module.request_stop()

    def on_iteration(self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]) -> None:
        assert not module.stopping
        self.heard.append(("iteration", int(metrics["frames"])))

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        self.heard.append(("end", int(metrics["frames"])))


def test_a_callback_hears_of_everything_and_stops_the_run(tmp_path: Path) -> None:
    callback = Listening(stop_at=400)
    learner = small("dime", tmp_path / "run", learning_starts=240, iteration_frames=80)
    learner._options["eval_every"] = 400
    learner.learn(1000, callback, progress_bar=False)
    iterations = [(kind, n) for n in (320, 400) for kind in ("iteration", "end")]
    assert callback.heard == [
        ("evaluation", 0),
        *[("collected", n) for n in (100, 200, 240)],
        *iterations[:2],
        ("evaluation", 400),
        *iterations[2:],
    ]
    assert learner.frames == 400


def test_a_function_stops_the_run_when_it_returns_false(tmp_path: Path) -> None:
    seen: list[float] = []

    def enough(metrics: dict[str, float]) -> bool:
        seen.append(metrics["frames"])
        assert math.isfinite(metrics["loss_critic"])
        return len(seen) < 2

    learner = small("diffppo", tmp_path / "run")
    learner.learn(400, enough, progress_bar=False)
    assert seen == [40, 80]
    assert learner.frames == 80
    assert (learner.folder / "checkpoints" / "frames_0000000080.ckpt").exists()
    # The next call is not stopped by the last one.
    learner.learn(40, lambda metrics: None, progress_bar=False)
    assert learner.frames == 120


def test_learning_works_outside_of_the_main_thread(tmp_path: Path) -> None:
    learner, failed = small("gaussian_ppo", tmp_path / "run"), []

    def learn() -> None:
        try:
            learner.learn(40, progress_bar=False)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=learn)
    thread.start()
    thread.join()
    assert failed == []
    assert learner.frames == 40
