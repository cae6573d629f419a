"""Searches for options: many short runs, of which Optuna chooses and prunes."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from diffpolicy.errors import ArgumentError, did_you_mean
from diffpolicy.trainers.config.options import Shape, in_flags, shapes_of
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io import console, files
from diffpolicy.trainers.io.signals import StopSignal
from diffpolicy.trainers.loops.base import RLModule, RunCallback
from diffpolicy.trainers.loops.evaluation import Evaluation
from diffpolicy.trainers.methods import METHODS, Method
from diffpolicy.trainers.run.launch import prepare, train
from diffpolicy.trainers.run.parser import Parser

STUDY_FILE = "study.log"
BEST_FILE = "best.yaml"
_KEYS = ("method", "options", "search", "trials")
_RANGE = {"low", "high", "log", "step"}
# Trials that are never pruned, so that there is something to compare with.
_FIRST_TRIALS = 4


@dataclass(frozen=True)
class Sweep:
    """A search.

    Attributes:
        method: what is trained.
        options: those that all trials share.
        search: for each option that is searched, a range (``low``, ``high``, ``log``, ``step``) or
            ``choices``.
        trials: how many runs there are in the end.
    """

    method: Method
    options: Mapping[str, Any]
    search: Mapping[str, Mapping[str, Any]]
    trials: int

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """Read a YAML file with ``method``, ``trials``, ``options`` and ``search``.

        Raises:
            ArgumentError: naming ``file``, if it cannot be read or something in it is wrong.
            SystemExit: with one line, for a shared option that is wrong.
        """

        def wrong(problem: str) -> ArgumentError:
            return ArgumentError("file", str(path), problem)

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise wrong(f"cannot be read: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise wrong(f"is not a YAML file: {' '.join(str(error).split())}.") from error
        if not isinstance(content, dict) or not {"method", "search"} <= content.keys():
            raise wrong("must have the entries method and search, see --help.")
        for key in content.keys() - set(_KEYS):
            raise wrong(f"has an entry {key}; {did_you_mean(key, _KEYS, 'see --help.')}")
        name, trials = content["method"], content.get("trials", 20)
        if name not in METHODS:
            advice = did_you_mean(str(name), METHODS, f"methods are {', '.join(METHODS)}.")
            raise wrong(f"has the method {name}; {advice}")
        if not isinstance(trials, int) or trials < 1:
            raise wrong(f"has trials: {trials}, which must be a whole number of at least 1.")
        if not isinstance(content["search"], dict) or not content["search"]:
            raise wrong("has no option under search, such as lr_actor: {low: 1e-4, high: 1e-3}.")
        method = METHODS[name]
        shapes = shapes_of(method.config)
        search = {}
        for option, values in content["search"].items():
            if option not in shapes:
                advice = did_you_mean(option, shapes, "see `diffpolicy train METHOD --help`.")
                raise wrong(f"searches {option}, which {name} does not have; {advice}")
            problem, search[option] = _searched(values, shapes[option])
            if problem:
                raise wrong(f"searches {option}, {problem}")
        return cls(method, _options(method, content.get("options") or {}), search, trials)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """The options of a trial, as Optuna chooses them."""
        shapes, chosen = shapes_of(self.method.config), {}
        for name, values in self.search.items():
            if "choices" in values:
                # Optuna stores simple values only.
                words = [json.dumps(choice) for choice in values["choices"]]
                value = json.loads(trial.suggest_categorical(name, words))
                chosen[name] = tuple(value) if isinstance(value, list) else value
            elif shapes[name].kind is int:
                chosen[name] = trial.suggest_int(name, **values)
            else:
                chosen[name] = trial.suggest_float(name, **values)
        return chosen


def _searched(values: Any, shape: Shape) -> tuple[str, dict[str, Any]]:
    """What is wrong with the values of an option, empty if nothing is, and the values."""
    if isinstance(values, dict) and values.keys() == {"choices"}:
        choices = values["choices"]
        if isinstance(choices, list) and choices:
            return "", {"choices": choices}
        return "whose choices must be a list.", {}
    if not isinstance(values, dict) or not {"low", "high"} <= values.keys() <= _RANGE:
        return "which needs low and high (and log: true, or step), or choices.", {}
    if shape.kind not in (int, float) or shape.length != 1:
        return "whose values are no single numbers: give choices.", {}
    try:
        # YAML takes 1e-4 for a word.
        numbers = {k: shape.kind(float(v)) for k, v in values.items() if k != "log"}
    except (TypeError, ValueError):
        return f"whose low and high must be numbers, got {values}.", {}
    if numbers["low"] >= numbers["high"]:
        return f"whose low must be less than its high, got {values}.", {}
    return "", {**numbers, "log": bool(values.get("log", False))}


def _options(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options from a file, read as those of ``--config`` are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "options.yaml"
        path.write_text(yaml.safe_dump(dict(given)), encoding="utf-8")
        return Parser(method.config, prog="diffpolicy sweep").parse_options(["--config", str(path)])


def run_sweep(
    sweep: Sweep, output: Path, *, progress_bar: bool = True
) -> tuple[optuna.Study, bool]:
    """Run the trials that are missing; every one is a run in a folder of its own.

    Args:
        sweep: what to search.
        output: folder of the study and of all runs; a study that is there goes on.
        progress_bar: whether each run shows how far it is.

    Returns:
        The study, and whether all of its trials are made (False after Ctrl-C).

    Raises:
        ArgumentError: the study in the folder is another one.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Whatever is wrong with the options that all trials share, this says so.
    prepare(sweep.method.config(**sweep.options, output=str(output / "none")))
    output.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(output / STUDY_FILE))),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_FIRST_TRIALS),
        load_if_exists=True,
    )
    # A study that goes on must not draw the same numbers again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    _check_same(sweep, study, output)
    missing = sweep.trials - len(made(study))
    objective = _objective(sweep, output, progress_bar)
    try:
        if missing > 0:
            study.optimize(objective, n_trials=missing, catch=(TrainingError, ValueError))
    except KeyboardInterrupt:
        return study, False
    finally:
        _keep_best(study, output)
    return study, True


def made(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: those that were finished or pruned."""
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def trial_folder(output: Path, number: int) -> Path:
    """The folder of a trial's run."""
    return output / f"trial_{number:04d}"


def _objective(sweep: Sweep, output: Path, progress_bar: bool) -> Callable[[optuna.Trial], float]:
    """What Optuna maximises: the mean return of the last evaluation of a run."""

    def run_trial(trial: optuna.Trial) -> float:
        chosen = sweep.suggest(trial)
        words = ", ".join(f"{name} {value}" for name, value in chosen.items())
        console.say(f"trial {trial.number}: {words}")
        folder = trial_folder(output, trial.number)
        stop, pruning = StopSignal(), _Pruning(trial)
        try:
            options = {**sweep.options, **chosen, "output": str(folder)}
            run = prepare(sweep.method.config(**options))
            train(run, stop, [pruning], progress_bar=progress_bar)
        except (TrainingError, ValueError) as error:
            said = in_flags(error) if isinstance(error, ValueError) else str(error)
            console.warn(f"trial {trial.number} has failed: {said}")
            raise
        if stop.requested():
            raise KeyboardInterrupt
        if pruning.pruned:
            console.say(f"trial {trial.number} is pruned at {pruning.value:.1f}")
            raise optuna.TrialPruned
        return pruning.value

    return run_trial


class _Pruning(RunCallback):
    """Tells a trial of every evaluation, and stops the run if that is worse than others were."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.value = float("nan")
        self.pruned = False

    def on_evaluation(self, trainer: L.Trainer, module: RLModule, evaluation: Evaluation) -> None:
        """Report it; the policy before its training says nothing."""
        self.value = evaluation.return_mean
        if evaluation.env_steps == 0:
            return
        self._trial.report(evaluation.return_mean, evaluation.env_steps)
        if not module.progress.finished and self._trial.should_prune():
            self.pruned = True
            module.request_stop()


def _check_same(sweep: Sweep, study: optuna.Study, output: Path) -> None:
    """Keep the search with the study, and compare it with that of a study that goes on."""
    content = {"method": sweep.method.name, "options": sweep.options, "search": sweep.search}
    asked = json.loads(json.dumps(content))
    kept = study.user_attrs.get("sweep", asked)
    differing = [key for key in asked if kept.get(key) != asked[key]]
    if differing:
        problem = f"holds a sweep with other {' and '.join(differing)}; choose another folder."
        raise ArgumentError("output", str(output), problem)
    study.set_user_attr("sweep", asked)


def _keep_best(study: optuna.Study, output: Path) -> None:
    """Copy the configuration of the best run, for ``--config``."""
    if study.get_trials(states=(TrialState.COMPLETE,)):
        config = trial_folder(output, study.best_trial.number) / files.CONFIG_FILE
        shutil.copyfile(config, output / BEST_FILE)
