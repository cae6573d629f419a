"""What the Lightning modules of all methods share: counters, evaluation, checkpoints."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase, ExplorationType
from torchrl.objectives import LossModule

from collectors import NonFiniteError, UnfinishedEpisodeError, evaluate
from collectors.errors import describe
from diffpolicy.networks.ranks import distributed, sum_over_ranks
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io.files import CHECKPOINT_KEY, Disk
from diffpolicy.trainers.loops.environments import evaluation_env

# Evaluations start from the same states in every run, whatever its seed.
EVALUATION_SEED = 1_000_003
_EXPLORATION = {
    "deterministic": ExplorationType.DETERMINISTIC,
    "stochastic": ExplorationType.RANDOM,
}


@dataclass(frozen=True)
class Evaluation:
    """Returns of one evaluation.

    Attributes:
        env_steps: environment steps (all ranks) trained on before it.
        return_mean: mean undiscounted return.
        return_std: standard deviation over the episodes.
        episodes: number of episodes.
    """

    env_steps: int
    return_mean: float
    return_std: float
    episodes: int


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
        evaluations: every evaluation so far.
        stop_requested: asked after each iteration whether this rank wants the run to stop.
        stopping: whether the run stops after this iteration, before it is finished.
        disk: carries out writes that may fail.
        replay_folder: where the replay buffers of the next checkpoint are, beside it; None if
            there are none.
    """

    def __init__(self, config: RunConfig, loss: LossModule) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.loss = loss
        self.frames = 0
        self.gradient_steps = 0
        self.wall_seconds = 0.0
        self.evaluations: list[Evaluation] = []
        self.stop_requested: Callable[[], bool] = lambda: False
        self.stopping = False
        self.disk = Disk()
        self.replay_folder: str | None = None
        self._loaded: dict[str, Any] | None = None
        self._clock = 0.0
        self._evaluation_env: EnvBase | None = None

    @property
    @abstractmethod
    def actor(self) -> TensorDictModuleBase:
        """The acting policy; it shares its parameters with the loss."""

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, in [0, 1]."""
        return min(1.0, self.frames / self.config.total_frames)

    @property
    def finished(self) -> bool:
        """Whether the environment steps of the run are used up."""
        return self.frames >= self.config.total_frames

    def close(self) -> None:
        """Close the environments."""
        if self._evaluation_env is not None:
            self._evaluation_env.close()
            self._evaluation_env = None

    # ---------------------------------------------------------------------------------------
    # Several ranks

    def reduce(self, values: Tensor, *, average: bool = False) -> Tensor:
        """Sum or average over the ranks; every rank gets the same result and must call it."""
        if not distributed():
            return values
        total = sum_over_ranks(values.detach().clone())
        return total / dist.get_world_size() if average else total

    def any_rank(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank; every rank must call it."""
        return bool(self.reduce(torch.tensor(float(flag), device=self.device)) > 0)

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
        own = self._evaluate() if self.global_rank == 0 else None
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

    def _evaluate(self) -> Evaluation | str:
        """An evaluation, or the words on what is wrong with it."""
        config = self.config
        if self._evaluation_env is None:
            self._evaluation_env = evaluation_env(config)
        advice = f"check the observations and rewards of --env {config.env}."
        try:
            returns, _ = evaluate(
                self.actor,
                self._evaluation_env,
                config.eval_episodes,
                seed=EVALUATION_SEED,
                exploration_type=_EXPLORATION[config.eval_policy],
            )
        except NonFiniteError as error:
            return f"{str(error).rstrip('.')}; {advice}"
        except UnfinishedEpisodeError:
            return (
                f"an episode of --env {config.env} does not end; cut episodes off with "
                "--max-episode-steps."
            )
        except Exception as error:  # whatever an environment may raise
            return f"--env {config.env} or the policy raised {describe(error)}\n"
        values = torch.tensor(returns, dtype=torch.float64)
        mean, std = float(values.mean()), float(values.std(correction=0))
        if not math.isfinite(mean):
            return f"the mean return is {mean}; {advice}"
        return Evaluation(self.frames, mean, std, config.eval_episodes)

    def evaluate_if_due(self) -> dict[str, float]:
        """The evaluation columns of an iteration's metrics; NaN where none is due."""
        mean = std = math.nan
        if self.evaluation_due():
            evaluation = self.run_evaluation()
            mean, std = evaluation.return_mean, evaluation.return_std
        return {"eval_return_mean": mean, "eval_return_std": std}

    def end_iteration(self, metrics: dict[str, float]) -> None:
        """Decide on all ranks alike whether to stop, and tell the callbacks."""
        self.stopping = self.any_rank(self.stop_requested()) and not self.finished
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
            "config": asdict(self.config),
            "frames": self.frames,
            "gradient_steps": self.gradient_steps,
            "wall_seconds": self.wall_seconds,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            # Before the first step there is nothing but the seed.
            "ranks": self.gather(self.rank_state()) if self.frames else [],
            "replay": self.replay_folder,
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
