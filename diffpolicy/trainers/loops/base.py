"""What the Lightning modules of all methods share: when they evaluate, stop, and are saved."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import BaseCollector
from torchrl.objectives import LossModule

from diffpolicy.policy.checkpoints import POLICY_KEY
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io.console import warn
from diffpolicy.trainers.io.files import CHECKPOINT_KEY, Disk, versions
from diffpolicy.trainers.io.signals import StopSignal
from diffpolicy.trainers.loops.environments import Notes
from diffpolicy.trainers.loops.evaluation import Evaluation, Evaluator
from diffpolicy.trainers.loops.progress import Progress
from diffpolicy.trainers.loops.ranks import any_rank, gather
from diffpolicy.trainers.loops.schedule import LinearSchedule


class RunCallback(L.Callback):
    """A callback that hears of iterations and evaluations, on every rank.

    It may end the run with :meth:`RLModule.request_stop`, on one rank or on all of them.
    """

    def on_collected(self, trainer: L.Trainer, module: "RLModule", frames: int) -> None:
        """Called while a replay buffer is filled, with all environment steps so far."""

    def on_iteration(
        self, trainer: L.Trainer, module: "RLModule", metrics: dict[str, float]
    ) -> None:
        """Called after an iteration with its metrics, before the run decides whether it goes on."""

    def on_evaluation(self, trainer: L.Trainer, module: "RLModule", evaluation: Evaluation) -> None:
        """Called after an evaluation."""

    def on_iteration_end(
        self, trainer: L.Trainer, module: "RLModule", metrics: dict[str, float]
    ) -> None:
        """Called after an iteration with its metrics, averaged over the ranks.

        Whether the run goes on is decided by then: see ``module.stopping``.
        """


class RLModule(L.LightningModule, ABC):
    """Reinforcement learning with manual optimisation; one Lightning epoch is one iteration.

    ``loss`` is the only submodule with parameters: the networks live in it, and registering them
    twice would give DistributedDataParallel parameters without gradients. Lightning's own loop
    counters describe a data set and are left out of checkpoints; the counters here replace them.

    Attributes:
        loss: the loss module with all parameters.
        progress: its counters.
        evaluator: evaluates the policy.
        signals: asked after each iteration whether this rank wants the run to stop, or to make a
            checkpoint.
        stopping: whether the run stops after this iteration, before it is finished.
        checkpointing: whether a rank was asked for a checkpoint after this iteration.
        disk: carries out writes that may fail.
        replay_folder: where the replay buffers of the next checkpoint are, beside it; None if
            there are none.
        warm_parts: which networks another run's parameters have been put into: ``"actor"``, and
            ``"critic"`` as well or not.
        described_policy: what checkpoints say about the policy, so that it acts without its
            trainer; empty where nothing is known.
        schedule: of the learning rate, for methods with ``--lr-schedule linear``.
    """

    #: What the run says about itself before it begins.
    notes: Notes

    def __init__(self, config: RunConfig, loss: LossModule) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.loss = loss
        self.progress = Progress(config.total_frames)
        self.evaluator = Evaluator(config)
        self.signals = StopSignal()
        self.stopping = False
        self.checkpointing = False
        self.disk = Disk()
        self.replay_folder: str | None = None
        self.warm_parts: tuple[str, ...] = ()
        self.described_policy: dict[str, Any] = {}
        self.schedule = LinearSchedule()
        self._stop_requested = False
        self._loaded: dict[str, Any] | None = None
        self._close_failed = False

    @property
    @abstractmethod
    def actor(self) -> TensorDictModuleBase:
        """The acting policy; it shares its parameters with the loss."""

    @property
    @abstractmethod
    def collector(self) -> BaseCollector:
        """The collector of this rank."""

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
                    f"--env {self.config.env_name} could not be closed ({words}); the results of "
                    "the run stand."
                )

    @property
    def policy_waits(self) -> bool:
        """Whether ``--policy-starts`` environment steps have yet to be made."""
        return self.progress.frames < self.config.policy_starts

    # ---------------------------------------------------------------------------------------
    # Evaluation, events

    def run_evaluation(self) -> Evaluation:
        """Evaluate on rank zero while the other ranks wait; all ranks get the result.

        Raises:
            TrainingError: on every rank, if a return or an observation is not finite, or an
                episode does not end.
        """
        progress = self.progress
        own = None
        if self.global_rank == 0:
            own = self.evaluator.evaluate(self.actor, progress.frames, self.collector)
        evaluation = self.trainer.strategy.broadcast(own)
        if not isinstance(evaluation, Evaluation):
            raise TrainingError(
                f"the evaluation after {progress.frames} environment steps failed: {evaluation}"
            )
        progress.tick()
        progress.evaluations.append(evaluation)
        for callback in self.run_callbacks():
            callback.on_evaluation(self.trainer, self, evaluation)
        return evaluation

    def evaluate_if_due(self) -> dict[str, float]:
        """The evaluation columns of an iteration's metrics; NaN where none is due."""
        mean = std = math.nan
        if self.progress.evaluation_due(self.config.eval_every):
            evaluation = self.run_evaluation()
            mean, std = evaluation.return_mean, evaluation.return_std
        return {"eval_return_mean": mean, "eval_return_std": std}

    def request_stop(self) -> None:
        """Have the run stop after this iteration, with a checkpoint; callbacks call it."""
        self._stop_requested = True

    def end_iteration(self, metrics: dict[str, float]) -> None:
        """Decide on all ranks alike whether to stop or save, and tell the callbacks."""
        for callback in self.run_callbacks():
            callback.on_iteration(self.trainer, self, metrics)
        finished = self.progress.finished
        stop_wanted = self._stop_requested or self.signals.requested()
        wanted = (stop_wanted, self.signals.checkpoint_requested())
        stop, self.checkpointing = any_rank(*wanted, device=self.device)
        self.stopping = stop and not finished
        if self.checkpointing:
            self.signals.begin_checkpoint()
        for callback in self.run_callbacks():
            callback.on_iteration_end(self.trainer, self, metrics)
        self.trainer.should_stop = finished or self.stopping

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
        options = self.config.fixed_options()
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
            "config": self.config.plain(),
            POLICY_KEY: self.described_policy or None,
            "versions": versions(),
            **self.progress.state_dict(),
            # Before the first step there is nothing but the seed.
            "ranks": gather(self.rank_state()) if self.progress.frames else [],
            "replay": self.replay_folder,
            "schedule": asdict(self.schedule),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`on_save_checkpoint` added; coefficients follow the configuration."""
        state = self._loaded = checkpoint[CHECKPOINT_KEY]
        saved = checkpoint["state_dict"]
        trained = {name: saved[name] for name in state["metadata"]["shapes"]}
        checkpoint["state_dict"] = {**trained, **self._coefficients()}
        self.progress.load_state_dict(state)
        self.schedule, change = LinearSchedule.resumed(state, self.config.total_frames)
        if change and self.global_rank == 0:
            warn(change)

    def _coefficients(self) -> dict[str, Tensor]:
        """Discounts and coefficients of the loss: part of its state, but not trained.

        They are the loss's own numbers and those of its value estimator; what its other parts hold,
        such as how a value range came about, is state that training changes.
        """
        saved = self.state_dict()
        return {
            f"loss.{name}": buffer.clone()
            for name, buffer in self.loss.named_buffers()
            if name.rpartition(".")[0] in ("", "_value_estimator")
            and buffer.numel() == 1
            and f"loss.{name}" in saved
        }
