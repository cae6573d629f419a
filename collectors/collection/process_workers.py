"""Worker processes on this machine."""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.weight_update import SharedMemWeightSyncScheme

from collectors.collection.signals import outlive_signals, signals_blocked
from collectors.collection.workers import WorkerEnv
from collectors.errors import WorkerError, describe


class ProcessWorkers:
    """Worker processes, each with a batched environment of its own; a ``WorkerGroup``.

    TorchRL notices a process that has died, but does not say why, and waits for ever if it dies
    while weights are sent or when the interpreter ends. This class mends that.

    Args:
        env_fns: builds the environment of each worker.
        policy: what they act with; ``None`` is random.
        device: where they act and where rollouts are stored.
        **options: further arguments of TorchRL's collector.

    Raises:
        WorkerError: a worker fails.
    """

    def __init__(
        self,
        env_fns: Sequence[WorkerEnv],
        policy: TensorDictModuleBase | None,
        *,
        device: torch.device,
        **options: Any,
    ) -> None:
        self._device = device
        # Files, because a worker that dies can leave a queue or a pipe unusable.
        self._reports = tempfile.TemporaryDirectory(prefix="workers-")
        scheme = None if policy is None else _SharedWeights()
        others = set(multiprocessing.active_children())
        try:
            with _restored_threads(), _spawning(), signals_blocked():
                self.collector: BaseCollector = Collector(
                    list(env_fns),
                    policy,
                    backend="process",
                    num_collectors=len(env_fns),
                    sync=True,
                    cat_results=0,
                    use_buffers=True,
                    env_device=None if device.type == "cpu" else torch.device("cpu"),
                    policy_device=device,
                    storing_device=device,
                    weight_sync_schemes=None if scheme is None else {"policy": scheme},
                    auto_register_policy_transforms=False,
                    collector_class=partial(_ReportingCollector, folder=self._reports.name),
                    init_fn=outlive_signals,
                    **options,
                )
        except BaseException as error:
            processes = [p for p in multiprocessing.active_children() if p not in others]
            _end(processes, None, scheme, self._reports)
            if not isinstance(error, Exception):
                raise
            reason = error if isinstance(error, WorkerError) else describe(error)
            raise WorkerError(f"the workers could not be started: {reason}") from None
        self._processes: list[BaseProcess] = list(self.collector.procs)
        # TorchRL does not shut the scheme down with the collector. Left to the end of the
        # interpreter it would start a thread there, and wait for it; as would living processes.
        # (Unlike atexit, this works in forked processes, too.)
        self._end = Finalize(
            self, _end, (self._processes, self.collector, scheme, self._reports), exitpriority=100
        )
        # Not iter(self.collector), which ends the other workers before it tells of a fault.
        self._rollouts: Iterator[TensorDictBase] = self.collector.iterator()

    def collect(self) -> TensorDictBase:
        """The next rollout ``[E, T]`` of all workers."""
        try:
            return next(self._rollouts)
        except Exception as error:
            raise self._fault(error) from None

    def send_policy(self) -> None:
        """Write the policy into the memory that all workers act with."""
        try:
            self.collector.update_policy_weights_()
        except Exception as error:
            raise self._fault(error) from None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def shutdown(self) -> None:
        """End the workers."""
        self._end()

    def _fault(self, error: Exception) -> WorkerError:
        """What the workers have left behind, if TorchRL has raised because of them."""
        wait([process.sentinel for process in _open(self._processes)], timeout=1.0)
        for index, process in enumerate(self._processes):
            if not _open([process]) or process.exitcode is None:
                continue
            worker = f"worker {index + 1} of {len(self._processes)}"
            report = _report(self._reports.name, index)
            if report.exists():
                return WorkerError(f"{worker} raised {report.read_text(encoding='utf-8')}")
            return WorkerError(f"{worker} died with {_exit_words(process.exitcode)}.")
        return WorkerError(f"collecting with worker processes failed: {describe(error)}")


class _SharedWeights(SharedMemWeightSyncScheme):
    """Sends weights by writing them into shared memory, without asking the workers.

    They act with that very memory, and are waiting for a command. TorchRL's scheme would have them
    copy it onto itself, and wait for ever for the answer of one that has died.
    """

    def send(self, weights: Any = None, worker_ids: Any = None) -> None:
        """Write the weights of the policy."""
        self.prepare_weights(weights, self._model_id, self._strategy, self.context)


class _ReportingCollector(Collector):
    """The collector inside of a worker: leaves a traceback when it fails."""

    def __init__(self, *args: Any, folder: str, **options: Any) -> None:
        try:
            super().__init__(*args, **options)
        except Exception as error:
            # TorchRL builds an exception of the same class from one text, which not all classes
            # can be built from.
            raise WorkerError(describe(error)) from None
        self._folder = folder

    def shutdown(self, *args: Any, **options: Any) -> None:
        """Close the environment. If it raises, nothing is lost, and nobody is left to tell."""
        with suppress(Exception):
            super().shutdown(*args, **options)

    def iterator(self) -> Iterator[TensorDictBase]:
        """Yield rollouts."""
        try:
            yield from super().iterator()
        except Exception as error:
            _report(self._folder, self.worker_idx).write_text(
                describe(error), encoding="utf-8", errors="backslashreplace"
            )
            # At once: closing an environment that is broken may take for ever, and an ordinary end
            # takes seconds and prints the traceback once more.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def _report(folder: str, worker: int) -> Path:
    return Path(folder, f"{worker}.txt")


def _open(processes: Sequence[BaseProcess]) -> list[BaseProcess]:
    """Processes that can be asked how they are: TorchRL closes some after a fault of others."""
    return [process for process in processes if not getattr(process, "_closed", False)]


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {member.value: member.name for member in signal.Signals}
    return f"exit code {code} ({names.get(-code, 'unknown signal')})"


def _end(
    processes: Sequence[BaseProcess],
    collector: BaseCollector | None,
    scheme: SharedMemWeightSyncScheme | None,
    reports: tempfile.TemporaryDirectory[str],
) -> None:
    """End worker processes: politely, unless one of them is dead already."""
    left = _open(processes)
    if collector is None or len(left) < len(processes) or not all(p.is_alive() for p in left):
        for process in left:
            process.kill()
            process.join()
    with _restored_threads():
        if collector is not None:
            collector.shutdown()
    if scheme is not None:
        scheme.shutdown()
    reports.cleanup()


@contextmanager
def _spawning() -> Iterator[None]:
    # In a process that was forked (a rank on the CPU) TorchRL would fork, too. Forked workers hold
    # the ends of their pipe that belong to their parent, and so would never hear of its end.
    method = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(method, force=True)


@contextmanager
def _restored_threads() -> Iterator[None]:
    # TorchRL gives this process another number of threads when it starts and ends workers.
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
