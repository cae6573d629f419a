"""What the Lightning modules that collect their own data share."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch.utils.data import DataLoader, IterableDataset
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase

from collectors import EpisodeStats, UnsupportedStateError, derive_seed
from collectors.randomness import load_random_state, random_state, seed_random_state
from diffpolicy.policy.checkpoints import described_policy
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io import resume
from diffpolicy.trainers.io.console import warn
from diffpolicy.trainers.loops.base import RLModule
from diffpolicy.trainers.loops.bounds import BoundWatch
from diffpolicy.trainers.loops.environments import run_notes, spec_env
from diffpolicy.trainers.loops.protocols import Parts, Stream
from diffpolicy.trainers.loops.ranks import gather, reduce
from diffpolicy.trainers.loops.rewards import TrainedRewards
from diffpolicy.trainers.loops.workers import (
    check_collector,
    faults_end_training,
    training_collector,
)

PartsT = TypeVar("PartsT", bound=Parts)
StreamT = TypeVar("StreamT", bound=Stream)
# Builds the parts of a method for an environment (only its specs are read) on a device.
BuildParts = Callable[[EnvBase, Any, torch.device], PartsT]


class CollectingModule(RLModule, Generic[PartsT, StreamT]):
    """Trains on batches from a stream that collects on this rank; one pass is one iteration.

    Args:
        config: the run's configuration.
        build: builds networks and loss. The networks depend on ``config.seed`` only, so they are
            the same on every rank; the global random state is left as it was.
        device: where to train.

    Raises:
        ValueError: for an environment that does not exist or does not suit the networks.

    Attributes:
        notes: what the run says about itself before it begins.
        env: one environment, of which only the specs are read.
        continued: what of the collection goes on from a checkpoint.
        bounds: tells of learned coefficients at their bounds.
        rewards: divides rewards by the size of returns.
    """

    config: OnPolicyConfig | OffPolicyConfig

    def __init__(
        self,
        config: OnPolicyConfig | OffPolicyConfig,
        build: BuildParts[PartsT],
        device: torch.device,
    ) -> None:
        check_collector(config)
        env = spec_env(config)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(config.seed))
            try:
                parts = build(env, config, device)
                notes = run_notes(env, config)
            except BaseException:
                with suppress(Exception):
                    env.close()
                raise
        super().__init__(config, parts.loss)
        self.described_policy = described_policy(self.actor, env)
        # In a tuple: an environment is a module of torch, and would be a part of this one.
        self._envs = (env,)
        self.attempt_to_close(partial(env.close, raise_if_closed=False))
        self.parts = parts
        self.notes = notes
        self._stream: StreamT | None = None
        self.continued = resume.Continuation()
        self._warned = False
        self.bounds = BoundWatch(self.loss, config)
        self.rewards = TrainedRewards(config.gamma, normalize=config.normalize_rewards)

    @property
    def actor(self) -> TensorDictModuleBase:
        """The acting policy; it shares its parameters with the loss."""
        return self.loss.actor_network

    @property
    def _cuda(self) -> list[torch.device]:
        """The CUDA device of this rank, if it has one."""
        return [self.device] if self.device.type == "cuda" else []

    @property
    def collector(self) -> BaseCollector:
        """The collector of this rank."""
        return self.stream.collector

    @property
    def stream(self) -> StreamT:
        """The stream of batches of this rank."""
        assert self._stream is not None
        return self._stream

    @abstractmethod
    def start_collecting(self, policy: TensorDictModuleBase, seed: Callable[[int], int]) -> StreamT:
        """Build the stream of this rank; ``seed`` maps an index to a seed."""

    def make_collector(
        self,
        policy: TensorDictModuleBase,
        *,
        frames_per_batch: int,
        seed: int,
        random_frames: int = 0,
    ) -> BaseCollector:
        """The collector of this rank; arguments as for :func:`collectors.make_collector`."""
        return training_collector(
            self.config,
            policy,
            frames_per_batch=frames_per_batch,
            random_frames=random_frames,
            seed=seed,
            device=self.device,
        )

    def on_fit_start(self) -> None:
        """Build this rank's environments and let them go on from the checkpoint, if there is one.

        This comes before Lightning asks for the data; the random state is taken over in
        :meth:`resume_random_state`.
        """
        self._open_stream()
        if self._loaded is not None:
            self._resume_collecting(self._loaded)

    def _open_stream(self) -> None:
        """Build the environments and start the random streams of this rank.

        The number of frames is part of every seed: a resumed run that starts new episodes must not
        repeat those of the first run, and resuming twice gives the same run twice.
        """
        seed = partial(derive_seed, self.config.seed, self.global_rank, self.progress.frames)
        seed_random_state(seed(0))
        self._stream = self.start_collecting(self.actor, seed)
        self.rewards.running = None

    def rank_state(self) -> dict[str, Any]:
        """Episodes, counters and generators of the stream, and the global random state."""
        state: dict[str, Any] = {
            "stream": None,
            "unsupported": "",
            "random": random_state(self._cuda),
            "running_returns": self.rewards.running,
        }
        try:
            state["stream"] = self.stream.state_dict()
        except UnsupportedStateError as error:
            state["unsupported"] = str(error).rstrip(".")
            self._warn_once(
                f"checkpoints of this run do not hold its episodes: {state['unsupported']}. "
                "Resumed from one, it starts new episodes."
            )
        outside = resume.outside_names(state)
        if outside:
            self._warn_once(
                f"checkpoints of this run do not hold all of it: {resume.outside_words(outside)}."
            )
        return state

    def _warn_once(self, text: str) -> None:
        if self.global_rank == 0 and not self._warned:
            self._warned = True
            warn(text)

    def load_replay(self, folder: Path) -> None:
        """Read this rank's replay buffer from ``folder``, for methods that have one.

        Raises:
            ValueError: if it cannot be read or does not fit.
        """

    def _resume_collecting(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds of the collection; all ranks do the same.

        What cannot be taken over is named in a warning.
        """
        plans = gather(resume.continuation(state, self.config))
        plan: resume.Continuation = max(plans, key=lambda plan: len(plan.reasons))
        problems = gather(self._take_over(state, plan))
        reason = next((problem for problem in problems if problem), None)
        if reason is not None:
            # Something may have been taken over by half.
            self.close()
            self._open_stream()
            plan = resume.Continuation(reasons=(reason,))
        if plan.reasons and self.global_rank == 0:
            warn(resume.warning(self.config, plan))
        self.continued = plan

    def _take_over(self, state: dict[str, Any], plan: resume.Continuation) -> str | None:
        """Load what ``plan`` says into the stream; return what is wrong with it, if anything."""
        try:
            if plan.replay is not None:
                self.load_replay(plan.replay)
            if plan.episodes:
                ours = state["ranks"][self.global_rank]
                self.stream.load_state_dict(ours["stream"])
                self.rewards.running = ours["running_returns"]
        except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            return f"what the checkpoint holds does not fit ({str(error).rstrip('.')})"
        return None

    def resume_random_state(self) -> None:
        """Take over the random state, if all else has been; the last thing before training."""
        state, self._loaded = self._loaded, None
        if state is not None and self.continued.episodes:
            load_random_state(state["ranks"][self.global_rank]["random"], self._cuda)

    def train_dataloader(self) -> DataLoader[Any]:
        """The stream of batches; one pass over it is one iteration."""
        return DataLoader(
            _Guarded(self.stream, self.config.env_name),
            batch_size=None,
            collate_fn=_identity,
            # An own generator keeps the loader away from the global random state.
            generator=torch.Generator(),
        )

    def begin_update(self) -> None:
        """Let CUDA graphs overwrite what the last update has computed."""
        if self.config.compile:
            torch.compiler.cudagraph_mark_step_begin()

    def close(self) -> None:
        """Shut the collector down and close all environments."""
        super().close()
        if self._stream is not None:
            self.attempt_to_close(self._stream.collector.shutdown)

    def bound_metrics(self) -> dict[str, float]:
        """Which learned coefficients are at a bound; the first time, rank zero warns."""
        if self.global_rank == 0:
            self.bounds.warn()
        return self.bounds.metrics()

    def check_finite(self, values: Mapping[str, float]) -> None:
        """Raise TrainingError if a number is NaN or infinite, naming it."""
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"{' and '.join(bad)} after {self.progress.frames} environment steps and "
                f"{self.progress.gradient_steps} gradient steps."
            )

    def over_ranks(self, steps: int) -> int:
        """Environment steps of all ranks, of which this one has made so many."""
        if self.config.action_chunk == 1:
            return steps * self.trainer.world_size
        # Chunks of actions are shorter where episodes end.
        return int(reduce(torch.tensor([steps], dtype=torch.float64, device=self.device)).item())

    def progress_metrics(
        self, frames: int, seconds: float, stats: EpisodeStats
    ) -> dict[str, float]:
        """Counters, speed and finished episodes of an iteration, over all ranks.

        Args:
            frames: environment steps of the iteration, of all ranks together.
            seconds: how long it took.
            stats: episodes that ended on this rank.
        """
        totals = torch.tensor(
            [stats.count, stats.return_sum, stats.length_sum],
            dtype=torch.float64,
            device=self.device,
        )
        count, returns, lengths = reduce(totals).tolist()
        return {
            "frames": self.progress.frames,
            "gradient_steps": self.progress.gradient_steps,
            "wall_seconds": self.progress.wall_seconds,
            "frames_per_second": frames / seconds,
            "episodes": count,
            "episode_return": returns / count if count else math.nan,
            "episode_length": lengths / count if count else math.nan,
        }


class _Guarded(IterableDataset[TensorDictBase]):
    """A stream whose faults (NaN from the environment, workers that die) end training."""

    def __init__(self, stream: Stream, env: str) -> None:
        self.stream = stream
        self.env = env

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[TensorDictBase]:
        with faults_end_training(self.env):
            yield from self.stream


def _identity(batch: Any) -> Any:
    return batch
