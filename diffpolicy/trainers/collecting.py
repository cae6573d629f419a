"""What the Lightning modules that collect their own data share."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch.utils.data import DataLoader, IterableDataset
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule

from collectors import EpisodeStats, NonFiniteError, derive_seed, make_collector
from diffpolicy.trainers.base import RLModule
from diffpolicy.trainers.config import OnPolicyConfig
from diffpolicy.trainers.environments import spec_env, training_env
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.off_policy_config import OffPolicyConfig


class Parts(Protocol):
    """What a method brings to its Lightning module."""

    @property
    def loss(self) -> LossModule:
        """The loss with all parameters; its ``actor_network`` is the policy."""

    @property
    def diagnostics(self) -> Callable[[], dict[str, float]]:
        """Further numbers to log, read after each iteration."""


class Stream(Protocol):
    """Batches of one rank, an iterable data set of known length."""

    collector: BaseCollector

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[TensorDictBase]: ...


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
    """

    config: OnPolicyConfig | OffPolicyConfig

    def __init__(
        self,
        config: OnPolicyConfig | OffPolicyConfig,
        build: BuildParts[PartsT],
        device: torch.device,
    ) -> None:
        env = spec_env(config)
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(derive_seed(config.seed))
                parts = build(env, config, device)
        finally:
            env.close()
        super().__init__(config, parts.loss)
        self.parts = parts
        self._stream: StreamT | None = None

    @property
    def actor(self) -> TensorDictModuleBase:
        """The acting policy; it shares its parameters with the loss."""
        return self.loss.actor_network

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
        return make_collector(
            partial(training_env, self.config, self.device),
            policy,
            frames_per_batch=frames_per_batch,
            random_frames=random_frames,
            seed=seed,
            device=self.device,
        )

    def on_fit_start(self) -> None:
        """Build this rank's environments and start its random streams.

        The number of frames is part of every seed: a resumed run starts new episodes, which must
        not repeat those of the first run, and resuming twice gives the same run twice.
        """
        seed = partial(derive_seed, self.config.seed, self.global_rank, self.frames)
        torch.manual_seed(seed(0))
        policy = torch.compile(self.actor) if self.config.compile else self.actor
        self._stream = self.start_collecting(policy, seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """The stream of batches; one pass over it is one iteration."""
        return DataLoader(
            _Guarded(self.stream),
            batch_size=None,
            collate_fn=_identity,
            # An own generator keeps the loader away from the global random state.
            generator=torch.Generator(),
        )

    def close(self) -> None:
        """Shut the collector down and close all environments."""
        super().close()
        if self._stream is not None:
            self._stream.collector.shutdown()

    def check_finite(self, values: Mapping[str, float]) -> None:
        """Raise TrainingError if a number is NaN or infinite, naming it."""
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"{' and '.join(bad)} after {self.frames} environment steps and "
                f"{self.gradient_steps} gradient steps."
            )

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
        count, returns, lengths = self.reduce(totals).tolist()
        return {
            "frames": self.frames,
            "gradient_steps": self.gradient_steps,
            "wall_seconds": self.wall_seconds,
            "frames_per_second": frames / seconds,
            "episodes": count,
            "episode_return": returns / count if count else math.nan,
            "episode_length": lengths / count if count else math.nan,
        }


@contextmanager
def non_finite_ends_training() -> Iterator[None]:
    """Turn NonFiniteError (NaN from the environment) into TrainingError."""
    try:
        yield
    except NonFiniteError as error:
        raise TrainingError(str(error)) from error


class _Guarded(IterableDataset[TensorDictBase]):
    """A stream whose refusal of a rollout (NaN from the environment) ends training."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[TensorDictBase]:
        with non_finite_ends_training():
            yield from self.stream


def _identity(batch: Any) -> Any:
    return batch
