"""Worker processes that collect, each with a batched environment of its own."""

import atexit
import weakref
from collections.abc import Callable
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import EnvBase
from torchrl.weight_update import SharedMemWeightSyncScheme

from collectors.envs import derive_seed


class WorkerEnv:
    """Builds and seeds the environment of one worker process."""

    def __init__(self, env_fn: Callable[[], EnvBase], seed: int, worker: int) -> None:
        self._env_fn = env_fn
        self._env_seed = derive_seed(seed, worker)
        self._noise_seed = derive_seed(seed, worker, 1)

    def __call__(self) -> EnvBase:
        """Seed this process and build its environment."""
        # The process belongs to this collector, so its global random state is ours to set: every
        # fresh process starts from the same state, and all workers would draw the same noise.
        torch.manual_seed(self._noise_seed)
        env = self._env_fn()
        env.set_seed(self._env_seed)
        return env


def start_workers(
    env_fns: list[WorkerEnv], policy: TensorDictModuleBase | None, **options: Any
) -> BaseCollector:
    """Start one process for each ``env_fn``, and see to it that they end with this process.

    A TorchRL collector that was not shut down, or that failed to start, keeps the interpreter
    waiting for ever when it exits: an error anywhere in a script would leave it hanging.
    """
    scheme = None if policy is None else SharedMemWeightSyncScheme()
    try:
        collector = Collector(
            env_fns,
            policy,
            backend="process",
            num_collectors=len(env_fns),
            sync=True,
            cat_results=0,
            use_buffers=True,
            weight_sync_schemes=None if scheme is None else {"policy": scheme},
            auto_register_policy_transforms=False,
            **options,
        )
    except BaseException:
        if scheme is not None:
            scheme.shutdown()
        raise
    # TorchRL does not shut the scheme down with the collector. Left to the end of the interpreter
    # it would start a thread there, and wait for it.
    references = [weakref.ref(part) for part in (collector, scheme) if part is not None]

    def shut_down() -> None:
        for reference in references:
            alive = reference()
            if alive is not None:
                alive.shutdown()

    atexit.register(shut_down)
    return collector
