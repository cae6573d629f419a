"""Metrics on their way to Lightning's loggers (TensorBoard, Weights & Biases)."""

import importlib.util
import math
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.io.cluster import is_first_process
from diffpolicy.trainers.io.console import warn
from diffpolicy.trainers.loops.base import RLModule, RunCallback
from diffpolicy.trainers.loops.evaluation import Evaluation


def check_loggers(config: RunConfig) -> None:
    """Raise ValueError if ``--logger`` needs a package or a login that is missing."""
    for name in config.logger:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise ValueError(f"--logger {name} needs the package {name}: pip install {name}.")
    if "wandb" in config.logger and is_first_process():
        import wandb

        try:
            # Asks on a terminal; does nothing when offline.
            wandb.login(verify=False)
        except wandb.errors.Error as error:
            raise ValueError(
                "--logger wandb needs a login; run `wandb login`, or set WANDB_MODE=offline."
            ) from error


def make_loggers(names: Sequence[str], output: Path, frames: int) -> list[Logger]:
    """The loggers of a run that starts or goes on after ``frames`` environment steps."""
    loggers: list[Logger] = []
    if "tensorboard" in names:
        # TensorBoard then hides what a resumed run does again: all later steps, and the evaluation
        # before the first one, too.
        purge_step = frames + 1 if frames else 0
        loggers.append(TensorBoardLogger(output, "tensorboard", "", purge_step=purge_step))
    if "wandb" in names:
        loggers.append(WandbLogger(output.name, output, project="diffpolicy"))
    return [ForgivingLogger(logger) for logger in loggers]


class LoggerMetrics(RunCallback):
    """Sends options and metrics to the trainer's loggers."""

    def __init__(self) -> None:
        self._told = False

    def on_evaluation(self, trainer: L.Trainer, module: RLModule, evaluation: Evaluation) -> None:
        """Log the evaluation against environment steps, the first one with all options."""
        returns = {
            "eval_return_mean": evaluation.return_mean,
            "eval_return_std": evaluation.return_std,
        }
        if self._told:
            self._log(trainer, returns, evaluation.env_steps)
            return
        self._told = True
        options = {"method": module.config.method, **module.config.plain()}
        for logger in trainer.loggers:
            if isinstance(logger, ForgivingLogger):
                logger.log_options(options, returns, evaluation.env_steps)

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        """Log the iteration against environment steps."""
        training = {k: v for k, v in metrics.items() if not k.startswith("eval_")}
        self._log(trainer, training, module.progress.frames)

    def _log(self, trainer: L.Trainer, metrics: Mapping[str, float], step: int) -> None:
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(known, step=step)


class ForgivingLogger(Logger):
    """A logger whose failure, for example on a full disk, does not end the run.

    Its first exception is reported in one line, and it is not used any more.
    """

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self.logger = logger
        self._failed = False

    @property
    def name(self) -> str | None:
        """Name of the experiment."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """Version of the experiment."""
        return self.logger.version

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers."""
        self._attempt(lambda: self.logger.log_metrics(dict(metrics), step))

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Log settings."""
        self._attempt(lambda: self.logger.log_hyperparams(params, *args, **kwargs))

    def log_options(
        self, options: Mapping[str, Any], metrics: Mapping[str, float], step: int
    ) -> None:
        """Log all options of a run and its first metrics, which TensorBoard lists together."""
        simple = (str, int, float)
        words = {k: v if isinstance(v, simple) else str(v) for k, v in options.items()}
        logger = self.logger
        if isinstance(logger, TensorBoardLogger):
            self._attempt(lambda: logger.log_hyperparams(words, dict(metrics), step))
        else:
            self.log_hyperparams(dict(options))
            self.log_metrics(metrics, step)

    def save(self) -> None:
        """Write what has been logged so far."""
        self._attempt(self.logger.save)

    def finalize(self, status: str) -> None:
        """Write everything and close."""
        self._attempt(lambda: self.logger.finalize(status))

    def _attempt(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        # Loggers raise whatever their service does.
        except Exception as error:
            self._failed = True
            warn(
                f"{type(self.logger).__name__} has failed and gets no more metrics, which are all "
                f"in metrics.csv: {type(error).__name__}: {error}"
            )
