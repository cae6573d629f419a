"""One run in a folder: names that do not collide, and a lock that ends with its processes."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffpolicy.errors import ArgumentError
from diffpolicy.trainers import DiffPPOConfig, TrainingError, prepare, train
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.io.files import write_atomically
from diffpolicy.trainers.io.folders import FolderLock, output_folder

SmallConfig = Callable[..., DiffPPOConfig]


def hold_lock(folder: Path, ready: Any, grandchild: bool) -> None:
    FolderLock(folder).acquire()  # freed with the object ...
    lock = FolderLock(folder)
    lock.acquire()  # ... so that this is no conflict
    if grandchild and (child := os.fork()):
        ready.send(child)
        os._exit(0)
    ready.send(os.getpid())
    signal.pause()


@pytest.fixture
def another_run(tmp_path: Path) -> Any:
    """Start a process that holds the lock of a folder; returns its id (or that of its fork)."""
    started: list[int] = []

    def start(folder: Path, *, grandchild: bool = False) -> int:
        ready, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=hold_lock, args=(folder, theirs, grandchild))
        process.start()
        pids = [ready.recv() for _ in range(1 + grandchild)]
        started.extend(pids)
        return int(next(pid for pid in pids if not grandchild or pid != process.pid))

    yield start
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_new_folders_of_the_same_second_differ(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20260101-120000")
    config = small_config(output=None)
    folders = {output_folder(config) for _ in range(20)}
    assert len(folders) == 20
    for folder in folders:
        assert folder.parent == Path("runs")
        assert folder.name.startswith("diffppo-InvertedPendulum-v5-seed0-20260101-120000-")


def _acquired_soon(lock: FolderLock) -> None:
    """Acquire a lock whose process is being ended: the kernel closes its files a moment later."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return lock.acquire()
        except ArgumentError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@pytest.mark.parametrize("grandchild", [False, True])
def test_a_lock_is_free_again_once_its_last_process_is_killed(
    tmp_path: Path, another_run: Callable[..., int], grandchild: bool
) -> None:
    pid = another_run(tmp_path, grandchild=grandchild)
    lock = FolderLock(tmp_path)
    with pytest.raises(ArgumentError, match=r"is in use by a run \(process \d+ on .+\); wait"):
        lock.acquire()
    os.kill(pid, signal.SIGKILL)
    _acquired_soon(lock)
    if not grandchild:
        os.waitpid(pid, 0)
    lock.acquire()  # the second time it is held already
    with pytest.raises(ArgumentError, match=f"process {os.getpid()} on "):
        FolderLock(tmp_path).acquire()
    lock.release()
    FolderLock(tmp_path).acquire()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_holds_its_folder_while_it_trains(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranks: int
) -> None:
    """Seen from a rank, which other runs are not."""
    seen = tmp_path / "seen"

    def look(module: Any) -> None:
        try:
            FolderLock(tmp_path / "run").acquire()
        except ArgumentError as error:
            seen.write_text(str(error))

    monkeypatch.setattr("diffpolicy.trainers.loops.progress.Progress.start_clock", look)
    config = small_config(total_frames=128, cpu_ranks=ranks)
    assert train(prepare(config))
    assert f"process {os.getpid()} on" in seen.read_text()
    FolderLock(tmp_path / "run").acquire()


def test_a_run_that_goes_on_in_its_folder_is_not_resumed_by_another(
    small_config: SmallConfig, tmp_path: Path, another_run: Callable[..., int]
) -> None:
    output = tmp_path / "run"
    assert train(prepare(small_config(total_frames=128)))
    another_run(output)
    before = {path: path.read_bytes() for path in output.rglob("*.*") if path.is_file()}
    with pytest.raises(ArgumentError, match=r"^output='.*run' is in use by a run \(process"):
        prepare(small_config(resume="last", total_frames=256))
    assert {path: path.read_bytes() for path in before} == before


def test_of_two_runs_that_were_prepared_at_once_one_gets_the_folder(
    small_config: SmallConfig, tmp_path: Path, another_run: Callable[..., int]
) -> None:
    first, second, third = (prepare(small_config(seed=i)) for i in range(3))
    (tmp_path / "run").mkdir()
    pid = another_run(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"^--output .*run is in use by a run \(process"):
        train(first)
    assert not (tmp_path / "run" / "config.yaml").exists()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert train(second)
    config = (tmp_path / "run" / "config.yaml").read_text()
    # It comes when the other one has ended: not in use any more, but used.
    with pytest.raises(TrainingError, match=r"^--output .*run already holds a run; choose another"):
        train(third)
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    assert Checkpoint.read(tmp_path / "run/checkpoints/last.ckpt").state["config"]["seed"] == 1


def test_a_refused_run_leaves_the_lock(small_config: SmallConfig) -> None:
    assert train(prepare(small_config(total_frames=128)))
    for _ in range(2):
        with pytest.raises(ValueError, match="--total-frames must be greater than 128") as refused:
            prepare(small_config(resume="last", total_frames=128))
        assert refused.value is not None
    assert train(prepare(small_config(resume="last", total_frames=256)))


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(file: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    FolderLock(tmp_path).acquire()
    said = capsys.readouterr().err
    assert said.startswith(f"warning: the file system of --output {tmp_path} has no locks")


def test_writers_of_one_file_do_not_share_a_temporary(tmp_path: Path) -> None:
    path = tmp_path / "results.json"

    def outer(temporary: Path) -> None:
        temporary.write_text("outer")
        write_atomically(path, lambda other: other.write_text("inner"))
        assert path.read_text() == "inner"
        assert temporary.read_text() == "outer"

    write_atomically(path, outer)
    assert path.read_text() == "outer"
    assert [found.name for found in tmp_path.iterdir()] == ["results.json"]
