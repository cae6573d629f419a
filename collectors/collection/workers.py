"""Collection in worker processes, on this machine or on others, that survives their faults."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase

from collectors.environments.own_memory import with_own_memory
from collectors.errors import WorkerError
from collectors.randomness import seed_random_state
from collectors.seeding import derive_seed


class WorkerEnv:
    """Builds and seeds the environment of one worker process.

    Args:
        env_fn: builds a batched environment.
        seed: seed of the collector.
        worker: index of the worker.
        attempt: how often the workers have been started before.
    """

    def __init__(
        self, env_fn: Callable[[], EnvBase], seed: int, worker: int, attempt: int = 0
    ) -> None:
        # Workers that start anew must not repeat the episodes of those that they replace.
        again = (0, attempt) if attempt else ()
        self._env_fn = env_fn
        self._env_seed = derive_seed(seed, worker, *again)
        self._noise_seed = derive_seed(seed, worker, 1, *again)

    def __call__(self) -> EnvBase:
        """Seed this process and build its environment."""
        # The process belongs to this collector, so its global random state is ours to set: every
        # fresh process starts from the same state, and all workers would draw the same noise.
        seed_random_state(self._noise_seed)
        env = self._env_fn()
        env.set_seed(self._env_seed)
        return with_own_memory(env)


class WorkerGroup(Protocol):
    """Running workers. Every method raises WorkerError if one of them has raised or died."""

    #: TorchRL's collector of these workers.
    collector: BaseCollector

    def collect(self) -> TensorDictBase:
        """The next rollout ``[E, T]`` of all workers."""

    def send_policy(self) -> None:
        """Have the workers act with the policy as it is now."""

    def shutdown(self) -> None:
        """End the workers, also those that do not answer any more."""


# Starts workers; called with the number of earlier starts and the random frames still to make.
StartWorkers = Callable[[int, int], WorkerGroup]


class WorkerCollector(BaseCollector):
    """A collector over worker processes; see :func:`collectors.make_collector`.

    Args:
        start: starts the workers.
        policy: what they act with; ``None`` is random.
        frames_per_batch: environment steps in a rollout, over all workers.
        total_frames: environment steps in total; -1: endless.
        random_frames: environment steps that act at random in the beginning.
        restarts: how often workers that fail are started anew. Their rollout is collected again.
        on_restart: called with one line that says why.

    Attributes:
        policy: as above.
        requested_frames_per_batch: ``frames_per_batch``.
        restarted: how often workers have been started anew.

    Raises:
        WorkerError: workers fail once more than ``restarts``; also raised by
            :meth:`update_policy_weights_` and while iterating.
    """

    def __init__(
        self,
        start: StartWorkers,
        policy: TensorDictModuleBase | None,
        *,
        frames_per_batch: int,
        total_frames: int = -1,
        random_frames: int = 0,
        restarts: int = 0,
        on_restart: Callable[[str], None] = warnings.warn,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.requested_frames_per_batch = frames_per_batch
        self.total_frames = total_frames
        self.restarts = restarts
        self.restarted = 0
        self._start = start
        self._on_restart = on_restart
        self._random_frames = random_frames
        self._frames = 0
        self._group: WorkerGroup | None = None
        self._closed = False
        self._attempt(lambda group: None)

    def iterator(self) -> Iterator[TensorDictBase]:
        """Yield rollouts ``[E, T]``."""
        while self.total_frames < 0 or self._frames < self.total_frames:
            rollout = self._attempt(lambda group: group.collect())
            self._frames += rollout.numel()
            yield rollout

    def update_policy_weights_(self) -> None:
        """Have the workers act with the policy as it is now."""
        if self.policy is not None:
            self._attempt(lambda group: group.send_policy())

    def shutdown(
        self, timeout: float | None = None, close_env: bool = True, raise_on_error: bool = True
    ) -> None:
        """End the workers; has no effect when they have ended already."""
        self._closed = True
        self._end_workers()

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Seed the environments; those of a restart have seeds of their own."""
        return self._running().collector.set_seed(seed, static_seed)

    def state_dict(self) -> OrderedDict[str, Any]:
        """What TorchRL's collector saves. Simulators are not part of it."""
        return self._running().collector.state_dict()

    def load_state_dict(self, state_dict: OrderedDict[str, Any]) -> None:
        """Restore what :meth:`state_dict` has saved."""
        self._running().collector.load_state_dict(state_dict)

    def _running(self) -> WorkerGroup:
        """The workers, started if they are not."""
        if self._closed:
            raise RuntimeError("the collector has been shut down; build a new one.")
        if self._group is None:
            remaining = max(0, self._random_frames - self._frames)
            self._group = self._start(self.restarted, remaining)
        return self._group

    def _end_workers(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.shutdown()

    def _attempt(self, action: Callable[[WorkerGroup], Any]) -> Any:
        """Do something with the workers, and again with fresh ones if they fail."""
        while True:
            try:
                return action(self._running())
            except WorkerError as error:
                self._end_workers()
                if self.restarted == self.restarts:
                    raise
                self.restarted += 1
                reason = str(error).partition("\n")[0].rstrip(".:")
                self._on_restart(
                    f"{reason}; the workers are started anew ({self.restarted} of {self.restarts} "
                    "times), with new episodes, and the rollout is collected again."
                )
