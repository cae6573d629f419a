"""What a run writes and shows: metrics, results, learning curve, progress bar."""

import math
import threading
from pathlib import Path
from typing import Any

import lightning as L
from matplotlib.figure import Figure
from tqdm import tqdm

from diffpolicy.trainers.io import console, files
from diffpolicy.trainers.io.metrics_table import MetricsTable
from diffpolicy.trainers.loops.base import RLModule, RunCallback
from diffpolicy.trainers.loops.evaluation import Evaluation
from diffpolicy.trainers.run.results import write_results

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
        self._metrics = MetricsTable(output / files.METRICS_FILE)
        self._timing = MetricsTable(output / files.TIMING_FILE)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run starts."""
        assert isinstance(pl_module, RLModule)
        self._metrics.frames = self._timing.frames = pl_module.progress.frames

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        """Append a row to both."""
        if trainer.is_global_zero:
            timing = {name: metrics[name] for name in ("frames", *_TIMING)}
            known = {name: value for name, value in metrics.items() if name not in _TIMING}
            for table, row in ((self._timing, timing), (self._metrics, known)):
                table.add(row)
                module.disk.attempt(str(table.path), table.write)


class ResultsFile(RunCallback):
    """``results.json`` and ``returns.png``, rewritten at every evaluation and at the end.

    The curve comes with its second point: nobody waits for a picture before the first step.
    """

    def __init__(self, output: Path) -> None:
        self.output = output

    def on_evaluation(self, trainer: L.Trainer, module: RLModule, evaluation: Evaluation) -> None:
        """Write both files."""
        if trainer.is_global_zero:
            self._write(module)
            if len(module.progress.evaluations) > 1:
                self._draw(module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the final counters, and the curve of a run with one evaluation."""
        assert isinstance(pl_module, RLModule)
        if trainer.is_global_zero:
            self._write(pl_module)
            if len(pl_module.progress.evaluations) == 1:
                self._draw(pl_module)

    def _draw(self, module: RLModule) -> None:
        plot = self.output / files.PLOT_FILE
        title = f"{module.config.method} on {module.config.env_name}"
        curve = learning_curve(module.progress.evaluations, title)
        module.disk.attempt(
            str(plot),
            lambda: files.write_atomically(plot, lambda p: curve.savefig(p, format="png")),
        )

    def _write(self, module: RLModule) -> None:
        path = self.output / files.RESULTS_FILE
        module.disk.attempt(str(path), lambda: write_results(self.output, module))


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


class _Clock(threading.Thread):
    """Draws a bar anew every second, while nothing else can."""

    def __init__(self, bar: Any) -> None:
        super().__init__(daemon=True)
        self._bar = bar
        self._ended = threading.Event()

    def run(self) -> None:
        """Draw until :meth:`stop` is called."""
        while not self._ended.wait(1.0 if console.STDERR.isatty() else 10.0):
            self._bar.refresh()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join()


class ProgressBar(RunCallback):
    """A bar with environment steps, return and speed, and a line for each evaluation."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._returns: dict[str, str] = {}
        self._compiled = False
        self._clock: _Clock | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar on rank zero."""
        assert isinstance(pl_module, RLModule)
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=pl_module.config.total_frames,
                initial=pl_module.progress.frames,
                unit="frame",
                unit_scale=True,
                bar_format=_BAR_FORMAT,
                mininterval=0.2 if console.STDERR.isatty() else 10.0,
                dynamic_ncols=True,
                file=console.STDERR,
            )

    def on_collected(self, trainer: L.Trainer, module: RLModule, frames: int) -> None:
        """Advance the bar while a replay buffer is filled."""
        if self._bar is not None:
            self._bar.set_postfix_str("filling the replay buffer", refresh=False)
            self._advance(frames)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tell of the compilation, and let the clock of the bar run meanwhile."""
        assert isinstance(pl_module, RLModule)
        if self._bar is not None and pl_module.config.compile and not self._compiled:
            self._bar.set_postfix_str("compiling the first updates", refresh=True)
            self._clock = _Clock(self._bar)
            self._clock.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The first update has been compiled."""
        self._compiled = True
        self._stop_clock()

    def on_evaluation(self, trainer: L.Trainer, module: RLModule, evaluation: Evaluation) -> None:
        """Print the evaluation above the bar."""
        if self._bar is not None:
            self._returns["eval"] = f"{evaluation.return_mean:.1f}"
            console.say(
                f"evaluation at {evaluation.env_steps} frames: return "
                f"{evaluation.return_mean:.1f} ± {evaluation.return_std:.1f} over "
                f"{evaluation.episodes} episodes"
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
        self._bar.set_postfix_str(f"{shown}, {speed}" if shown else speed, refresh=False)
        self._advance(module.progress.frames)

    def _advance(self, frames: int) -> None:
        # Whole iterations may overshoot the number that was asked for.
        self._bar.total = max(self._bar.total, frames)
        self._bar.update(frames - self._bar.n)

    def _stop_clock(self) -> None:
        clock, self._clock = self._clock, None
        if clock is not None:
            clock.stop()

    def close(self) -> None:
        """Close the bar if it is open."""
        self._stop_clock()
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
