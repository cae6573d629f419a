"""What a run writes and shows: metrics, results, learning curve, checkpoints, progress bar."""

import csv
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from matplotlib.figure import Figure
from tqdm import tqdm

from diffpolicy.trainers import files
from diffpolicy.trainers.base import Evaluation, RLModule, RunCallback

_BAR_FORMAT = (
    "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames [{elapsed}<{remaining}{postfix}]"
)


# Metrics that differ between two runs of the same seed.
_TIMING = ("wall_seconds", "frames_per_second")


class MetricsFiles(RunCallback):
    """``metrics.csv`` and ``timing.csv``: one row for each iteration.

    What depends on the speed of the machine is in ``timing.csv``, so that runs with the same seed
    and flags write the same ``metrics.csv``.
    """

    def __init__(self, output: Path) -> None:
        self._metrics = _Table(output / files.METRICS_FILE)
        self._timing = _Table(output / files.TIMING_FILE)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run starts."""
        assert isinstance(pl_module, RLModule)
        self._metrics.frames = self._timing.frames = pl_module.frames

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        """Append a row to both."""
        if trainer.is_global_zero:
            timing = {name: metrics[name] for name in ("frames", *_TIMING)}
            self._timing.append(timing, module.frames)
            known = {name: value for name, value in metrics.items() if name not in _TIMING}
            self._metrics.append(known, module.frames)


class _Table:
    """A csv file that grows by rows; a resumed run drops the rows it repeats.

    Attributes:
        frames: environment steps of the last row to keep.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames = 0
        self._columns: list[str] = []

    def append(self, metrics: Mapping[str, float], frames: int) -> None:
        """Add the row of ``frames``; metrics that were not there before get a column."""
        if not metrics.keys() <= set(self._columns):
            earlier = self._earlier_rows()
            self._columns = list(dict.fromkeys([*(earlier[0] if earlier else ()), *metrics]))
            files.write_atomically(self.path, lambda path: self._write(path, "w", earlier))
        self._write(self.path, "a", [metrics])
        self.frames = frames

    def _earlier_rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            rows = csv.DictReader(file)
            return [row for row in rows if int(row["frames"]) <= self.frames]

    def _write(self, path: Path, mode: str, rows: list[Any]) -> None:
        with path.open(mode, newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if mode == "w":
                writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: float | str) -> float | str:
    """An empty cell stands for "no value", for example when no episode has ended."""
    return "" if isinstance(value, float) and math.isnan(value) else value


class LoggerMetrics(RunCallback):
    """Sends metrics to the trainer's Lightning loggers (TensorBoard, Weights & Biases)."""

    def on_evaluation(self, trainer: L.Trainer, module: RLModule, evaluation: Evaluation) -> None:
        """Log the evaluation against environment steps."""
        self._log(
            trainer,
            {
                "eval_return_mean": evaluation.return_mean,
                "eval_return_std": evaluation.return_std,
            },
            evaluation.env_steps,
        )

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        """Log the iteration against environment steps."""
        training = {k: v for k, v in metrics.items() if not k.startswith("eval_")}
        self._log(trainer, training, module.frames)

    def _log(self, trainer: L.Trainer, metrics: Mapping[str, float], step: int) -> None:
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(known, step=step)


class ResultsFile(RunCallback):
    """``results.json`` and ``returns.png``, rewritten at every evaluation and at the end."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def on_evaluation(self, trainer: L.Trainer, module: RLModule, evaluation: Evaluation) -> None:
        """Write both files."""
        if trainer.is_global_zero:
            self._write(module)
            curve = learning_curve(
                module.evaluations, f"{module.config.method} on {module.config.env}"
            )
            files.write_atomically(
                self.output / files.PLOT_FILE, lambda path: curve.savefig(path, format="png")
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the final counters."""
        assert isinstance(pl_module, RLModule)
        if trainer.is_global_zero:
            self._write(pl_module)

    def _write(self, module: RLModule) -> None:
        seconds = module.wall_seconds
        content = {
            "method": module.config.method,
            "env": module.config.env,
            "seed": module.config.seed,
            "env_steps": module.frames,
            "gradient_steps": module.gradient_steps,
            "wall_seconds": round(seconds, 3),
            "frames_per_second": round(module.frames / seconds, 1) if seconds else 0.0,
            "config": asdict(module.config),
            "versions": files.versions(),
            "evaluations": [asdict(evaluation) for evaluation in module.evaluations],
        }
        files.write_json(self.output / files.RESULTS_FILE, content)


def learning_curve(evaluations: list[Evaluation], title: str) -> Figure:
    """Plot the evaluation return, mean and standard deviation, against environment steps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [evaluation.env_steps for evaluation in evaluations]
    means = [evaluation.return_mean for evaluation in evaluations]
    low = [e.return_mean - e.return_std for e in evaluations]
    high = [e.return_mean + e.return_std for e in evaluations]
    axes.plot(steps, means, marker="o", markersize=3, label="mean over episodes")
    axes.fill_between(steps, low, high, alpha=0.2, label="± one standard deviation")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("evaluation return")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


class Checkpoints(RunCallback):
    """``checkpoints/last.ckpt`` and one numbered checkpoint every ``--checkpoint-every`` steps.

    There is one from the start, so that a run which fails can always be continued.
    """

    def __init__(self, output: Path, every: int) -> None:
        self.folder = output / files.CHECKPOINT_FOLDER
        self.every = every
        self._saved = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state before the first step."""
        assert isinstance(pl_module, RLModule)
        self._saved = pl_module.frames
        if pl_module.frames == 0:
            self._save_last(trainer)

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        """Save when due, and at the end of the run."""
        due = module.frames // self.every > self._saved // self.every
        if not (due or module.finished or module.stopping):
            return
        self._save_last(trainer)
        self._saved = module.frames
        if trainer.is_global_zero:
            last = self.folder / files.LAST_CHECKPOINT
            files.write_atomically(
                self.folder / f"frames_{module.frames:010d}.ckpt",
                lambda path: shutil.copyfile(last, path),
            )

    def _save_last(self, trainer: L.Trainer) -> None:
        # Every rank takes part in saving; only rank zero writes.
        last = self.folder / files.LAST_CHECKPOINT
        temporary = last.with_name(f".{last.name}.tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(last)
        trainer.strategy.barrier("checkpoint")


class ProgressBar(RunCallback):
    """A bar with environment steps, return and speed, and a line for each evaluation."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._returns: dict[str, str] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar on rank zero."""
        assert isinstance(pl_module, RLModule)
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=pl_module.config.total_frames,
                initial=pl_module.frames,
                unit="frame",
                unit_scale=True,
                bar_format=_BAR_FORMAT,
                mininterval=0.2 if sys.stderr.isatty() else 10.0,
                dynamic_ncols=True,
            )

    def on_evaluation(self, trainer: L.Trainer, module: RLModule, evaluation: Evaluation) -> None:
        """Print the evaluation above the bar."""
        if self._bar is not None:
            self._returns["eval"] = f"{evaluation.return_mean:.1f}"
            self._bar.write(
                f"evaluation at {evaluation.env_steps} frames: return {evaluation.return_mean:.1f} "
                f"± {evaluation.return_std:.1f} over {evaluation.episodes} episodes"
            )

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        """Advance the bar."""
        if self._bar is None:
            return
        if not math.isnan(metrics["episode_return"]):
            self._returns["return"] = f"{metrics['episode_return']:.1f}"
        speed = f"{metrics['frames_per_second']:.0f} frames/s"
        shown = ", ".join(f"{name} {value}" for name, value in self._returns.items())
        # Whole iterations may overshoot the number that was asked for.
        self._bar.total = max(self._bar.total, module.frames)
        self._bar.set_postfix_str(f"{shown}, {speed}" if shown else speed, refresh=False)
        self._bar.update(module.frames - self._bar.n)

    def close(self) -> None:
        """Close the bar if it is open."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that an error message starts on a line of its own."""
        self.close()
