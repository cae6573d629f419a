"""Methods as classes, in the way of Stable-Baselines3: make one, learn, evaluate, save."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L

from collectors import EVALUATION_SEED
from diffpolicy.errors import ArgumentError, did_you_mean
from diffpolicy.trainers.config.options import fields_of
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.loops.base import RLModule, RunCallback
from diffpolicy.trainers.loops.evaluation import Evaluation
from diffpolicy.trainers.methods import METHODS, Method
from diffpolicy.trainers.run.launch import prepare, train
from diffpolicy.trainers.run.trained import evaluate_run, load_run

Callback = Callable[[dict[str, float]], bool | None] | RunCallback

# What is said by other means, and by which.
_NOT_OPTIONS = {"total_frames": "learn(total_frames)", "resume": "load(folder)"}
# Until learn() says how long a run is.
_ANY_LENGTH = 10**9


class Learner:
    """A method that learns on an environment; ``diffpolicy.DIME`` and its like are subclasses.

        from diffpolicy import DIME

        model = DIME("Pendulum-v1", seed=1)
        model.learn(10_000)
        print(model.evaluate(episodes=10).return_mean)
        model.save("pendulum")

    A learner is a run, as ``diffpolicy train`` makes them: it has a folder with metrics, results
    and checkpoints, and everything goes on from there. A method of your own becomes a learner by
    ``class Mine(Learner): method = MY_METHOD``.

    Args:
        env: the environment, as the option ``env``.
        **options: those of the method, by the names of its flags (``lr_actor=3e-4``); ``output``
            is the folder, by default a new one in ``runs/``.

    Raises:
        ArgumentError: for an option that the method does not have.
        ValueError: for a value out of range.

    Attributes:
        config: all options; ``total_frames`` is that of the latest :meth:`learn`.
    """

    method: ClassVar[Method]

    def __init__(self, env: Any, **options: Any) -> None:
        known = [field.name for field in fields_of(self.method.config)]
        for name, value in options.items():
            if name in _NOT_OPTIONS:
                raise ArgumentError(name, value, f"is not an option: call {_NOT_OPTIONS[name]}.")
            if name not in known:
                advice = did_you_mean(name, known, f"options: {', '.join(known)}.")
                raise ArgumentError(name, value, f"is no option of {self.method.name}; {advice}")
        self._options = {"env": env, **options}
        self.config: RunConfig = self.method.config(total_frames=_ANY_LENGTH, **self._options)
        self._checkpoint: Checkpoint | None = None

    @classmethod
    def load(cls, run: str | Path) -> Self:
        """Go on with a run, in its folder, wherever it was started.

        Args:
            run: its folder; :meth:`save` makes such folders, too.

        Raises:
            ArgumentError: there is no run, or it is one of another method.
        """
        checkpoint = Checkpoint.of_run(run, "run")
        theirs = checkpoint.state["metadata"]["method"]
        if theirs != cls.method.name:
            problem = f"is a run of {theirs}, and {cls.__name__} goes on with {cls.method.name}."
            raise ArgumentError("run", str(run), problem)
        saved = checkpoint.state["config"]
        known = {field.name for field in fields_of(cls.method.config)}
        learner = cls.__new__(cls)
        learner.config = cls.method.config(**{k: v for k, v in saved.items() if k in known})
        learner.config = replace(learner.config, output=str(checkpoint.run_folder))
        learner._options, learner._checkpoint = {}, checkpoint
        return learner

    @property
    def frames(self) -> int:
        """Environment steps so far."""
        return 0 if self._checkpoint is None else self._checkpoint.frames

    @property
    def folder(self) -> Path:
        """Where metrics, results and checkpoints are.

        Raises:
            RuntimeError: before :meth:`learn`.
        """
        return self._trained().run_folder

    @property
    def policy(self) -> Any:
        """What acts, as of now: a :class:`diffpolicy.Policy`, from :func:`diffpolicy.load_policy`.

        Raises:
            RuntimeError: before :meth:`learn`.
        """
        return import_module("diffpolicy").load_policy(self._trained().path)

    def learn(
        self,
        total_frames: int,
        callback: Callback | Iterable[Callback] = (),
        *,
        progress_bar: bool = True,
    ) -> Self:
        """Train for some environment steps; the next call goes on exactly where this one ended.

        Args:
            total_frames: environment steps to make, rounded up to whole iterations. The random
                steps of off-policy methods count, and depend on the first call.
            callback: one or several: a function of the metrics of an iteration (``frames``,
                ``episode_return``, ``eval_return_mean`` (NaN where none was due), losses), which
                ends the training when it returns False; or a :class:`RunCallback`, which also hears
                of evaluations and is given the module.
            progress_bar: whether to show how far it is.

        Returns:
            Itself.

        Raises:
            ValueError: for an environment or an option that does not work.
            TrainingError: if training cannot go on.
        """
        length = self.frames + total_frames
        if self._checkpoint is None:
            config = self.method.config(total_frames=length, **self._options)
        else:
            config = replace(self.config, total_frames=length, resume=str(self._checkpoint.path))
        run = prepare(config, self.method.module, self._checkpoint)
        self.config = replace(config, output=str(run.output))
        given = [callback] if callable(callback) or isinstance(callback, RunCallback) else callback
        train(run, callbacks=[_as_callback(item) for item in given], progress_bar=progress_bar)
        self._checkpoint = Checkpoint.of_run(run.output, "output")
        return self

    def evaluate(self, episodes: int = 10, *, seed: int = EVALUATION_SEED) -> Evaluation:
        """Run episodes in fresh environments, on the CPU.

        Args:
            episodes: how many.
            seed: of initial states and noise; by default that of all evaluations.

        Raises:
            RuntimeError: before :meth:`learn`.
            TrainingError: an episode does not end, or a number is not finite.
        """
        return evaluate_run(self.module(), episodes, seed=seed)

    def module(self) -> RLModule:
        """A copy of loss and networks with the parameters as of now, on the CPU.

        Raises:
            RuntimeError: before :meth:`learn`.
        """
        return load_run(self._trained().path, self.method)[0]

    def save(self, folder: str | Path) -> None:
        """Copy all that is needed to act and to go on: the run without its older checkpoints.

        Args:
            folder: a new one, for :meth:`load`, ``diffpolicy eval`` and
                :func:`diffpolicy.load_policy`.

        Raises:
            ArgumentError: it exists.
            RuntimeError: before :meth:`learn`.
        """
        checkpoint, target = self._trained(), Path(folder)
        if target.exists():
            raise ArgumentError("folder", str(folder), "exists; give a new one.")
        kept = target / files.CHECKPOINT_FOLDER
        shutil.copytree(
            self.folder, target, ignore=shutil.ignore_patterns(files.CHECKPOINT_FOLDER, ".*")
        )
        kept.mkdir()
        shutil.copyfile(checkpoint.path, kept / files.LAST_CHECKPOINT)
        replay = checkpoint.state.get("replay")
        if replay is not None and (checkpoint.path.parent / replay).is_dir():
            shutil.copytree(checkpoint.path.parent / replay, kept / replay)

    def _trained(self) -> Checkpoint:
        if self._checkpoint is None:
            raise RuntimeError(f"this {type(self).__name__} has learned nothing yet; call learn().")
        return self._checkpoint


class _Function(RunCallback):
    """A function of metrics as a callback."""

    def __init__(self, function: Callable[[dict[str, float]], bool | None]) -> None:
        self._function = function

    def on_iteration(self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]) -> None:
        """Call it; False ends the run."""
        wanted = self._function(dict(metrics))
        if wanted is not None and not wanted:
            module.request_stop()


def _as_callback(given: Callback) -> RunCallback:
    return given if isinstance(given, RunCallback) else _Function(given)


def _learner(method: Method) -> type[Learner]:
    """The learner of a method, named as its configuration: ``DIME`` for ``DIMEConfig``."""
    name = method.config.__name__.removesuffix("Config")
    text = f"{name}: {method.summary}.\n\nSee :class:`Learner`; options are those of the method."
    return type(name, (Learner,), {"method": method, "__doc__": text, "__module__": __name__})


LEARNERS: dict[str, type[Learner]] = {
    learner.__name__: learner for learner in map(_learner, METHODS.values())
}
"""A learner for each registered method, by the name under which ``diffpolicy`` has it."""
