import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import EnvBase

from collectors import (
    CollectionError,
    OffPolicyStream,
    WorkerError,
    make_collector,
    make_env,
    make_replay_buffer,
)
from collectors.collection.rollouts import RolloutReader
from collectors.collection.signals import OUTLIVED
from collectors.collection.workers import WorkerCollector, WorkerEnv

MakeEnv = Callable[..., EnvBase]
pendulum = partial(make_env, "Pendulum-v1", num_envs=2)


class Workers:
    """Stands in for workers: fails where it is told to."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        self.ended = False

    def _do(self, what: str) -> None:
        assert not self.ended
        if self.faults and self.faults[0] == what:
            self.faults.pop(0)
            raise WorkerError(f"worker 1 of 1 died with {what}.\nIts traceback.")

    def collect(self) -> TensorDictBase:
        self._do("collect")
        return torch.zeros(2, 5)

    def send_policy(self) -> None:
        self._do("send")

    def shutdown(self) -> None:
        self.ended = True


class TestRestarts:
    """With workers that cost nothing to start."""

    def build(self, faults: list[str], **options: int) -> WorkerCollector:
        self.starts: list[tuple[int, int]] = []
        self.groups: list[Workers] = []
        self.lines: list[str] = []

        def start(attempt: int, random_frames: int) -> Workers:
            self.starts.append((attempt, random_frames))
            if faults and faults[0] == "start":
                faults.pop(0)
                raise WorkerError("the workers could not be started: because\nIts traceback.")
            self.groups.append(Workers(faults))
            return self.groups[-1]

        return WorkerCollector(
            start, nn.Linear(1, 1), frames_per_batch=10, on_restart=self.lines.append, **options
        )

    def test_every_kind_of_fault_is_survived(self) -> None:
        faults = ["start", "collect", "send", "start", "collect"]
        collector = self.build(list(faults), restarts=5, total_frames=30, random_frames=20)
        rollouts = []
        for rollout in collector:
            rollouts.append(rollout)
            collector.update_policy_weights_()
        assert len(rollouts) == 3
        assert collector.restarted == 5
        # new seeds every time, and the random frames that are still to be made
        assert self.starts == [(0, 20), (1, 20), (2, 20), (3, 10), (4, 10), (5, 10)]
        assert [group.ended for group in self.groups] == [True, True, True, False]
        assert self.lines[0] == (
            "the workers could not be started: because; the workers are started anew (1 of 5 "
            "times), with new episodes, and the rollout is collected again."
        )
        assert self.lines[1].startswith("worker 1 of 1 died with collect; the workers are")
        assert len(self.lines) == 5

    def test_one_fault_too_many(self) -> None:
        collector = self.build(["collect", "collect"], restarts=1)
        with pytest.raises(WorkerError, match=r"died with collect\.\nIts traceback"):
            next(iter(collector))
        assert all(group.ended for group in self.groups)

    def test_none_by_default_and_none_after_the_end(self) -> None:
        with pytest.raises(WorkerError, match="could not be started"):
            self.build(["start"])
        collector = self.build([])
        collector.shutdown()
        collector.shutdown()
        with pytest.raises(RuntimeError, match="has been shut down"):
            next(iter(collector))
        assert len(self.starts) == 1

    def test_it_warns_unless_told_otherwise(self) -> None:
        options = {"frames_per_batch": 10, "restarts": 1}
        collector = WorkerCollector(lambda *_: Workers(["collect"]), None, **options)
        with (
            pytest.warns(UserWarning, match=r"died with collect; .* \(1 of 1 times\)"),
            pytest.raises(WorkerError),
        ):
            next(iter(collector))

    def test_new_workers_have_seeds_of_their_own(self) -> None:
        states = []
        for worker in (0, 1):
            for attempt in (0, 1, 2):
                env = WorkerEnv(pendulum, 0, worker, attempt)()
                states.append((env.reset()["observation"], torch.rand(2)))
        observations, noise = map(torch.stack, zip(*states, strict=True))
        assert len(observations.flatten(0, 1).unique(dim=0)) == 12
        assert len(noise.unique(dim=0)) == 6


class TestProcesses:
    @pytest.mark.slow
    def test_a_fault_is_survived_once_and_then_reported(
        self, faulty_envs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        env_fn = partial(
            make_env, f"{faulty_envs}:Faulty-v0", num_envs=1, first=4, flags=str(tmp_path)
        )
        lines: list[str] = []
        collector = make_collector(
            env_fn,
            None,
            frames_per_batch=12,
            seed=0,
            backend="process",
            num_workers=2,
            restarts=1,
            on_restart=lines.append,
        )
        threads = torch.get_num_threads()
        reader = RolloutReader(collector)
        rollout = reader.read()
        assert rollout.shape == (2, 6)
        assert rollout["step_count"][:, -1, 0].tolist() == [5, 5]
        assert reader.frames == 12
        assert len(lines) == 1
        assert "raised ArithmeticError: the simulator broke at step 4; the workers" in lines[0]
        began = time.monotonic()
        with pytest.raises(WorkerError) as raised:
            reader.read()
        assert time.monotonic() - began < 10
        assert "of 2 raised ArithmeticError: the simulator broke at step 8\n" in str(raised.value)
        assert 'faulty_envs.py", line' in str(raised.value)
        assert "Traceback (most recent call last)" in str(raised.value)
        assert not multiprocessing.active_children()
        assert torch.get_num_threads() == threads
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("fault", "words"), [("exit", "exit code 7"), ("kill", r"exit code -9 \(SIGKILL\)")]
    )
    def test_a_worker_that_dies(self, faulty_envs: str, fault: str, words: str) -> None:
        env_fn = partial(make_env, f"{faulty_envs}:Faulty-v0", num_envs=2, fault=fault)
        collector = make_collector(
            env_fn, None, frames_per_batch=40, seed=0, backend="process", num_workers=2
        )
        began = time.monotonic()
        with pytest.raises(WorkerError, match=rf"^worker \d of 2 died with {words}\.$"):
            next(iter(collector))
        assert time.monotonic() - began < 10
        assert not multiprocessing.active_children()

    @pytest.mark.slow
    @pytest.mark.parametrize("when", ["before weights are sent", "before a rollout"])
    def test_a_worker_that_is_killed_while_it_waits(self, pendulum: MakeEnv, when: str) -> None:
        policy = TensorDictModule(nn.Linear(3, 1), ["observation"], ["action"])
        collector = make_collector(
            pendulum, policy, frames_per_batch=40, seed=0, backend="process", num_workers=2
        )
        iterator = iter(collector)
        next(iterator)
        victim = multiprocessing.active_children()[0]
        victim.kill()
        victim.join()
        began = time.monotonic()
        if when == "before weights are sent":
            collector.update_policy_weights_()
        with pytest.raises(WorkerError, match=r"died with exit code -9 \(SIGKILL\)"):
            next(iterator)
        assert time.monotonic() - began < 10
        assert not multiprocessing.active_children()

    @pytest.mark.slow
    def test_kill_at_any_moment(self, pendulum: MakeEnv) -> None:
        """A worker that is killed again and again, at moments that nobody chooses."""
        policy = TensorDictModule(nn.Linear(3, 1), ["observation"], ["action"])
        lines: list[str] = []
        collector = make_collector(
            pendulum,
            policy,
            frames_per_batch=40,
            seed=0,
            backend="process",
            num_workers=2,
            restarts=5,
            on_restart=lines.append,
        )
        reader = RolloutReader(collector)
        for moment in range(5):
            reader.read()
            victim = multiprocessing.active_children()[moment % 2]
            signal.setitimer(signal.ITIMER_REAL, 0.005 + 0.013 * moment)
            previous = signal.signal(signal.SIGALRM, lambda *_, v=victim: v.kill())
            try:
                while len(lines) <= moment:
                    reader.read()
            finally:
                signal.signal(signal.SIGALRM, previous)
        collector.shutdown()
        assert all("SIGKILL" in line for line in lines)

    @pytest.mark.slow
    def test_a_process_that_torchrl_has_closed(self, pendulum: MakeEnv) -> None:
        """It closes those that it finds alive at first and dead a moment later."""
        collector = make_collector(
            pendulum, None, frames_per_batch=40, seed=0, backend="process", num_workers=2
        )
        iterator = iter(collector)
        next(iterator)
        processes = multiprocessing.active_children()
        for process in processes:
            process.kill()
            process.join()
        collector._group._processes[1].close()
        with pytest.raises(WorkerError, match=r"^worker 1 of 2 died with .* \(SIGKILL\)"):
            next(iterator)
        assert not multiprocessing.active_children()

    @pytest.mark.slow
    def test_signals_are_left_to_the_parent(self, pendulum: MakeEnv) -> None:
        collector = make_collector(
            pendulum, None, frames_per_batch=40, seed=0, backend="process", num_workers=2
        )
        iterator = iter(collector)
        next(iterator)
        for process in multiprocessing.active_children():
            for number in OUTLIVED:
                os.kill(process.pid, number)
        assert next(iterator).shape == (4, 10)
        collector.shutdown()
        assert not multiprocessing.active_children()

    @pytest.mark.slow
    def test_signals_while_workers_start(self, pendulum: MakeEnv) -> None:
        """All processes get them, also the one of Python's that watches over shared resources."""
        sent: list[int] = []

        def send(stop: threading.Event) -> None:
            while not stop.wait(0.05):
                for child in psutil.Process().children(recursive=True):
                    sent.append(child.pid)
                    child.send_signal(signal.SIGUSR1)

        stop = threading.Event()
        thread = threading.Thread(target=send, args=(stop,))
        thread.start()
        try:
            collector = make_collector(
                pendulum, None, frames_per_batch=40, seed=0, backend="process", num_workers=2
            )
        finally:
            stop.set()
            thread.join()
        workers = {process.pid for process in multiprocessing.active_children()}
        assert workers <= set(sent)
        assert next(iter(collector)).shape == (4, 10)
        collector.shutdown()
        assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    @pytest.mark.slow
    def test_an_environment_that_cannot_be_built_there(
        self, faulty_envs: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BUILDABLE_IN", str(os.getpid()))
        env_fn = partial(make_env, f"{faulty_envs}:Unbuildable-v0")
        with pytest.raises(WorkerError, match="no licence for the simulator") as raised:
            make_collector(
                env_fn, None, frames_per_batch=2, seed=0, backend="process", num_workers=2
            )
        assert str(raised.value).startswith("the workers could not be started: OSError: no licence")
        assert not multiprocessing.active_children()

    @pytest.mark.slow
    def test_workers_end_with_their_parent(self, tmp_path: Path) -> None:
        reader, writer = multiprocessing.Pipe(duplex=False)
        parent = multiprocessing.get_context("spawn").Process(target=_collect, args=(writer,))
        parent.start()
        assert reader.poll(120)
        workers = [psutil.Process(pid) for pid in reader.recv()]
        parent.kill()
        parent.join()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert len(workers) == 2
        assert not alive

    @pytest.mark.slow
    def test_the_off_policy_stream(self, pendulum: MakeEnv) -> None:
        """One step of every environment at a time; buffers that change reach the workers."""
        policy = TensorDictModule(Constant(), ["observation"], ["action"])
        collector = make_collector(
            pendulum, policy, frames_per_batch=4, seed=0, backend="process", num_workers=2
        )
        buffer = make_replay_buffer(100, batch_size=8, seed=0)
        stream = OffPolicyStream(collector, buffer, frames=8, updates_per_step=0.25)
        rows = stream.warm_up(12)
        assert rows.shape == (12,)
        assert (rows["action"] == 0.5).all()
        policy.module.value.fill_(-0.5)
        assert len(list(stream)) == len(stream) == 2
        assert len(buffer) == 20
        assert (buffer[12:]["action"] == -0.5).all()
        assert buffer["step_count"][:4].tolist() == [[0]] * 4
        assert buffer["step_count"][-4:].tolist() == [[4]] * 4
        collector.shutdown()


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(0.5))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.value.expand(*observation.shape[:-1], 1).clone()


def _collect(writer: Connection) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collector = make_collector(
            pendulum, None, frames_per_batch=40, seed=0, backend="process", num_workers=2
        )
        iterator = iter(collector)
        next(iterator)
        writer.send([process.pid for process in multiprocessing.active_children()])
        for _ in iterator:
            pass


class TestOneProcess:
    def test_the_traceback_is_part_of_the_error(self, faulty_envs: str) -> None:
        env_fn = partial(make_env, f"{faulty_envs}:Faulty-v0", num_envs=2, first=3)
        collector = make_collector(env_fn, None, frames_per_batch=20, seed=0)
        with pytest.raises(CollectionError) as raised:
            RolloutReader(collector).read()
        message = str(raised.value)
        assert message.startswith(
            "the environment or the policy raised ArithmeticError: the simulator broke at step 3\n"
        )
        assert 'faulty_envs.py", line' in message
        assert isinstance(raised.value.__cause__, ArithmeticError)
        assert not isinstance(raised.value, WorkerError)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"backend": "slurm"}, "backend must be one of local, process, ray, got 'slurm'"),
            ({"num_workers": 2}, "num_workers must be 0 with backend='local', got 2; try"),
            ({"backend": "process"}, "num_workers must be at least 1 .*'process', got 0"),
            ({"restarts": 1}, "restarts must be 0, or more with workers, got 1 with .*'local'"),
            (
                {"backend": "process", "num_workers": 1, "restarts": -1},
                "restarts must be 0, or more with workers, got -1",
            ),
            (
                {"backend": "process", "num_workers": 3},
                r"environments, 6 \(2 per process, 3 process\(es\)\), got 20; try 24",
            ),
        ],
    )
    def test_arguments(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_collector(pendulum, None, frames_per_batch=20, seed=0, **arguments)
