"""What the Lightning modules of all methods share: counters, evaluation, checkpoints."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import BaseCollector
from torchrl.objectives import LossModule

from diffpolicy.networks.ranks import distributed, sum_over_ranks
from diffpolicy.trainers.config import RunConfig
from diffpolicy.trainers.console import warn
from diffpolicy.trainers.environments import Notes
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.evaluator import Evaluation, Evaluator
from diffpolicy.trainers.files import CHECKPOINT_KEY, Disk
from diffpolicy.trainers.options import fixed_options
from diffpolicy.trainers.schedule import LinearSchedule
from diffpolicy.trainers.scope import StopSignal


class RunCallback(L.Callback):
    """A callback that hears of iterations and evaluations, on every rank."""

    def on_evaluation(self, trainer: L.Trainer, module: "RLModule", evaluation: Evaluation) -> None:
        """Called after an evaluation."""

    def on_iteration_end(
        self, trainer: L.Trainer, module: "RLModule", metrics: dict[str, float]
    ) -> None:
        """Called after an iteration with its metrics, averaged over the ranks."""


class RLModule(L.LightningModule, ABC):
    """Reinforcement learning with manual optimisation; one Lightning epoch is one iteration.

    ``loss`` is the only registered submodule: the networks live in it, and registering them twice
    would give DistributedDataParallel parameters without gradients. Lightning's own loop counters
    describe a data set and are left out of checkpoints; the counters here replace them.

    Attributes:
        loss: the loss module with all parameters.
        frames: environment steps so far, of all ranks together.
        gradient_steps: optimiser steps so far.
        wall_seconds: time spent so far, evaluations included.
        evaluator: evaluates on this rank.
        evaluations: every evaluation so far.
        signals: asked after each iteration whether this rank wants the run to stop, or to make a
            checkpoint.
        stopping: whether the run stops after this iteration, before it is finished.
        checkpointing: whether a rank was asked for a checkpoint after this iteration.
        disk: carries out writes that may fail.
        replay_folder: where the replay buffers of the next checkpoint are, beside it; None if
            there are none.
        schedule: of the learning rate, for methods with ``--lr-schedule linear``.
    """

    #: What the run says about itself before it begins.
    notes: Notes

    def __init__(self, config: RunConfig, loss: LossModule) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.loss = loss
        self.frames = 0
        self.gradient_steps = 0
        self.wall_seconds = 0.0
        self.evaluations: list[Evaluation] = []
        self.signals = StopSignal()
        self.stopping = False
        self.checkpointing = False
        self.evaluator = Evaluator(config)
        self.disk = Disk()
        self.replay_folder: str | None = None
        self.schedule = LinearSchedule()
        self._loaded: dict[str, Any] | None = None
        self._clock = 0.0
        self._close_failed = False

    @property
    @abstractmethod
    def actor(self) -> TensorDictModuleBase:
        """The acting policy; it shares its parameters with the loss."""

    @property
    @abstractmethod
    def collector(self) -> BaseCollector:
        """The collector of this rank."""

    @property
    def finished(self) -> bool:
        """Whether the environment steps of the run are used up."""
        return self.frames >= self.config.total_frames

    def close(self) -> None:
        """Close the environments; one that raises meanwhile is named in a warning, the first time.

        What the run has found out stands all the same.
        """
        self.attempt_to_close(self.evaluator.close)

    def attempt_to_close(self, close: Callable[[], object]) -> None:
        """Call ``close``, and turn what environments or workers raise there into one warning."""
        try:
            close()
        except Exception as error:  # whatever a simulator may raise
            if not self._close_failed:
                self._close_failed = True
                words = f"{type(error).__name__}: {error}"
                warn(
                    f"--env {self.config.env} could not be closed ({words}); the results of the "
                    "run stand."
                )

    # ---------------------------------------------------------------------------------------
    # Several ranks

    def reduce(self, values: Tensor, *, average: bool = False) -> Tensor:
        """Sum or average over the ranks; every rank gets the same result and must call it."""
        if not distributed():
            return values
        total = sum_over_ranks(values.detach().clone())
        return total / dist.get_world_size() if average else total

    def any_rank(self, *flags: bool) -> list[bool]:
        """Which of ``flags`` are true on any rank; every rank must call it."""
        counts = self.reduce(torch.tensor(flags, dtype=torch.float32, device=self.device))
        return [count > 0 for count in counts.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """What every rank gives, in the order of the ranks; every rank must call it."""
        if not distributed():
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    # ---------------------------------------------------------------------------------------
    # Time, evaluation, events

    def start_clock(self) -> None:
        """Start to measure ``wall_seconds``."""
        self._clock = time.perf_counter()

    def tick(self) -> float:
        """Add the time since the last call to ``wall_seconds`` and return it."""
        now = time.perf_counter()
        elapsed = now - self._clock
        self._clock = now
        self.wall_seconds += elapsed
        return elapsed

    def evaluation_due(self) -> bool:
        """Whether ``--eval-every`` environment steps have passed since the last evaluation."""
        if not self.evaluations or self.finished:
            return True
        every = self.config.eval_every
        return self.frames // every > self.evaluations[-1].env_steps // every

    def run_evaluation(self) -> Evaluation:
        """Evaluate on rank zero while the other ranks wait; all ranks get the result.

        Raises:
            TrainingError: on every rank, if a return or an observation is not finite, or an
                episode does not end.
        """
        own = None
        if self.global_rank == 0:
            own = self.evaluator.evaluate(self.actor, self.frames, self.collector)
        evaluation = self.trainer.strategy.broadcast(own)
        if not isinstance(evaluation, Evaluation):
            raise TrainingError(
                f"the evaluation after {self.frames} environment steps failed: {evaluation}"
            )
        self.tick()
        self.evaluations.append(evaluation)
        for callback in self.run_callbacks():
            callback.on_evaluation(self.trainer, self, evaluation)
        return evaluation

    def evaluate_if_due(self) -> dict[str, float]:
        """The evaluation columns of an iteration's metrics; NaN where none is due."""
        mean = std = math.nan
        if self.evaluation_due():
            evaluation = self.run_evaluation()
            mean, std = evaluation.return_mean, evaluation.return_std
        return {"eval_return_mean": mean, "eval_return_std": std}

    def end_iteration(self, metrics: dict[str, float]) -> None:
        """Decide on all ranks alike whether to stop or save, and tell the callbacks."""
        wanted = (self.signals.requested(), self.signals.checkpoint_requested())
        stop, checkpoint = self.any_rank(*wanted)
        self.stopping = stop and not self.finished
        self.checkpointing = checkpoint
        if checkpoint:
            self.signals.begin_checkpoint()
        for callback in self.run_callbacks():
            callback.on_iteration_end(self.trainer, self, metrics)
        self.trainer.should_stop = self.finished or self.stopping

    def run_callbacks(self) -> list[RunCallback]:
        """The trainer's callbacks that want to hear of iterations."""
        return [c for c in self.trainer.callbacks if isinstance(c, RunCallback)]  # type: ignore[attr-defined]

    # ---------------------------------------------------------------------------------------
    # Checkpoints

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the run that loads it."""
        coefficients = self._coefficients()
        shapes = {
            name: list(value.shape)
            for name, value in self.state_dict().items()
            if name not in coefficients
        }
        options = fixed_options(self.config)
        return {"method": self.config.method, "options": options, "shapes": shapes}

    @abstractmethod
    def rank_state(self) -> dict[str, Any]:
        """What this rank needs to go on collecting, as plain data."""

    def save_replay(self, folder: Path) -> None:
        """Write this rank's replay buffer into ``folder``, for methods that have one.

        Raises:
            OSError: if the disk does not take it.
        """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's state, that of every rank included, and drop Lightning's loop counters."""
        checkpoint.pop("loops", None)
        checkpoint[CHECKPOINT_KEY] = {
            "metadata": self.metadata(),
            "config": asdict(self.config),
            "frames": self.frames,
            "gradient_steps": self.gradient_steps,
            "wall_seconds": self.wall_seconds,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            # Before the first step there is nothing but the seed.
            "ranks": self.gather(self.rank_state()) if self.frames else [],
            "replay": self.replay_folder,
            "schedule": asdict(self.schedule),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`on_save_checkpoint` added; coefficients follow the configuration."""
        state = self._loaded = checkpoint[CHECKPOINT_KEY]
        saved = checkpoint["state_dict"]
        trained = {name: saved[name] for name in state["metadata"]["shapes"]}
        checkpoint["state_dict"] = {**trained, **self._coefficients()}
        self.frames = state["frames"]
        self.gradient_steps = state["gradient_steps"]
        self.wall_seconds = state["wall_seconds"]
        self.evaluations = [Evaluation(**values) for values in state["evaluations"]]
        self.schedule, change = LinearSchedule.resumed(state, self.config.total_frames)
        if change and self.global_rank == 0:
            warn(change)

    def _coefficients(self) -> dict[str, Tensor]:
        """Discounts and coefficients of the loss: part of its state, but not trained."""
        saved = self.state_dict()
        return {
            f"loss.{name}": buffer.clone()
            for name, buffer in self.loss.named_buffers()
            if not name.partition(".")[0].endswith("_params")
            and buffer.numel() == 1
            and f"loss.{name}" in saved
        }
