"""Worker processes on the machines of a Ray cluster."""

import copy
import importlib.util
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.collectors import BaseCollector, Collector

from collectors.collection.signals import signals_blocked
from collectors.collection.workers import WorkerEnv
from collectors.errors import WorkerError, describe
from diffpolicy.errors import ArgumentError

# Seconds that a cluster has to find a CPU for each worker.
_PLACEMENT_TIMEOUT = 60.0


class RayWorkers:
    """Ray actors, each with a batched environment of its own; a ``WorkerGroup``.

    TorchRL's ``RayCollector`` starts and ends the actors. Where it falls short, this class does
    something else:

    * Its weights travel over a process group of their own, to the address of this host's name
      (a loopback address on many systems), and wait for ever for an actor that has died. Here they
      travel through Ray's object store.
    * It waits for ever if the cluster has no room for all actors. Here a placement group reserves
      one CPU for each, spread over the machines, within a minute.
    * An exception in an actor is lost, because Ray asks whether the actor is true, and TorchRL's
      endless collectors answer by an infinite length. Here they are true.
    * It stacks rollouts along a new dimension and hears of an actor's fault only once all others
      are done. Here rollouts are joined along the environments and faults are heard at once.

    Args:
        env_fns: builds the environment of each worker.
        policy: what they act with, each on a CPU; ``None`` is random.
        device: where this process gets the rollouts.
        **options: further arguments of TorchRL's collector.

    Raises:
        WorkerError: a worker fails, or the cluster has no room for it.
    """

    def __init__(
        self,
        env_fns: Sequence[WorkerEnv],
        policy: TensorDictModuleBase | None,
        *,
        device: torch.device,
        **options: Any,
    ) -> None:
        import ray

        self._ray = ray
        self._policy = policy
        self._device = device
        _connect(len(env_fns))
        self._placement = _reserve(len(env_fns))
        try:
            self.collector = _start_actors(env_fns, policy, self._placement, options)
        except Exception as error:
            ray.util.remove_placement_group(self._placement)
            raise WorkerError(f"the workers could not be started: {describe(error)}") from None

    def collect(self) -> TensorDictBase:
        """The next rollout ``[E, T]`` of all workers."""
        rollouts = self._ask("next")
        return torch.cat(rollouts).to(self._device)

    def send_policy(self) -> None:
        """Send the parameters and buffers of the policy to all workers."""
        if self._policy is not None:
            values = {name: value.detach().cpu() for name, value in _tensors(self._policy).items()}
            self._ask("load_policy", self._ray.put(values))

    def shutdown(self) -> None:
        """End the workers. A cluster that was started for them ends with this process."""
        self.collector.shutdown()
        self._ray.util.remove_placement_group(self._placement)

    def _ask(self, method: str, *args: Any) -> list[Any]:
        """Call a method of all workers at the same time and return their answers."""
        actors = self.collector.remote_collectors
        waiting = {getattr(a, method).remote(*args): i for i, a in enumerate(actors)}
        answers: list[Any] = [None] * len(actors)
        while waiting:
            # One at a time: a fault must not wait for the others.
            (future, *_), _ = self._ray.wait(list(waiting))
            index = waiting.pop(future)
            try:
                answers[index] = self._ray.get(future)
            except Exception as error:
                raise _fault(f"worker {index + 1} of {len(actors)}", error) from None
        return answers


class _RemoteCollector(Collector):
    """The collector inside of an actor."""

    def __bool__(self) -> bool:
        # Ray asks for it when an actor raises. Without this method Python would ask for the length,
        # which is infinite, and the exception would be lost in the error that this gives.
        return True

    def load_policy(self, values: Mapping[str, Tensor]) -> None:
        """Act with other parameters and buffers from now on."""
        own = _tensors(self.policy)
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)


def check_ray() -> None:
    """Raise ArgumentError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ArgumentError(
            "backend",
            "ray",
            "needs the package ray, which is not installed; try pip install 'diffpolicy[ray]', or "
            "process.",
        )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _connect(workers: int) -> None:
    """Connect this process with a cluster, unless it is: that of RAY_ADDRESS, or one of its own."""
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if "RAY_ADDRESS" not in os.environ:
        cpus = max(workers, os.cpu_count() or 1)
        # Without an address Ray would join any cluster that it finds on this machine.
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    # The cluster's processes inherit the mask, and so outlive signals that reach all processes.
    with _kept_signal_handler(), signals_blocked():
        ray.init(**options)


def _reserve(workers: int) -> Any:
    """A placement group with one CPU for each worker, on as many machines as there are."""
    import ray

    group = ray.util.placement_group([{"CPU": 1}] * workers, strategy="SPREAD")
    try:
        ray.get(group.ready(), timeout=_PLACEMENT_TIMEOUT)
    except ray.exceptions.GetTimeoutError:
        ray.util.remove_placement_group(group)
        total, free = ray.cluster_resources(), ray.available_resources()
        raise WorkerError(
            f"the Ray cluster has no CPU for each of {workers} workers: {free.get('CPU', 0):g} of "
            f"{total.get('CPU', 0):g} are free after {_PLACEMENT_TIMEOUT:g} seconds; ask for fewer "
            "workers or add machines."
        ) from None
    return group


def _start_actors(
    env_fns: Sequence[WorkerEnv],
    policy: TensorDictModuleBase | None,
    placement: Any,
    options: Mapping[str, Any],
) -> BaseCollector:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategies = [PlacementGroupSchedulingStrategy(placement, i) for i in range(len(env_fns))]
    cpu = torch.device("cpu")
    with warnings.catch_warnings():
        # For a policy of None, which has no weights to send.
        warnings.filterwarnings("ignore", message=".*nn.Module", module="torchrl")
        return Collector(
            list(env_fns),
            None if policy is None else copy.deepcopy(policy).to(cpu),
            backend="ray",
            num_collectors=len(env_fns),
            sync=True,
            backend_options={
                "collector_class": _RemoteCollector,
                "collector_kwargs": [{"auto_register_policy_transforms": False} for _ in env_fns],
                "remote_configs": [
                    {"num_cpus": 1, "num_gpus": 0, "scheduling_strategy": s} for s in strategies
                ],
                "weight_sync_schemes": {},
            },
            **options,
        )


def _fault(worker: str, error: Exception) -> WorkerError:
    """What a worker has left behind."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        # The cause itself has lost its traceback on the way, but Ray's message holds it.
        summary = describe(error.cause).partition("\n")[0]
        return WorkerError(f"{worker} raised {summary}\n{str(error).strip()}")
    return WorkerError(f"{worker} died.\n{str(error).strip()}")


@contextmanager
def _kept_signal_handler() -> Iterator[None]:
    # Ray replaces the handler of SIGTERM by one that exits at once.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
