"""What is in the checkpoint folder, when writes fail, when files are bad, when not all goes on."""

import dataclasses
import io
import os
import pickle
import random
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffpolicy.trainers import (
    METHODS,
    DIMEConfig,
    Run,
    TrainingError,
    prepare,
    train,
)
from diffpolicy.trainers.errors import RunFinishedError
from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.io.resume import continuation
from diffpolicy.trainers.io.signals import StopSignal
from diffpolicy.trainers.loops.updates import Updates
from diffpolicy.trainers.run.cli import parse_config, run_script

ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]
Register = Callable[[type[gym.Env[Any, Any]]], str]
Build = Callable[..., DIMEConfig]


@pytest.fixture
def dime(tmp_path: Path) -> Build:
    """Configurations of small runs: 20 random steps, then two iterations of 10, each saved."""
    small: dict[str, Any] = {
        "env": "Pendulum-v1",
        "num_envs": 2,
        "learning_starts": 20,
        "iteration_frames": 10,
        "total_frames": 40,
        "batch_size": 4,
        "updates_per_step": 0.1,
        "denoising_steps": 2,
        "actor_hidden_sizes": (8,),
        "critic_hidden_sizes": (8,),
        "max_episode_steps": 10,
        "eval_episodes": 2,
        "eval_every": 10_000,
        "checkpoint_every": 10,
        "replay_size": 1000,
        "logger": ("csv",),
    }

    def build(**options: Any) -> DIMEConfig:
        return DIMEConfig(**{**small, "output": str(tmp_path / "run"), **options})

    return build


def trained(config: DIMEConfig, stop: StopSignal | None = None) -> Run:
    run = prepare(config)
    assert train(run, stop)
    return run


def names(folder: Path) -> list[str]:
    """Files and folders in ``checkpoints``, without the random part of their names."""
    return sorted(
        path.name if path.suffix != ".replay" else path.name.partition("-")[0] + ".replay"
        for path in (folder / "checkpoints").iterdir()
    )


def warnings_in(text: str) -> list[str]:
    lines = (part for line in text.splitlines() for part in line.split("\r"))
    return [line[line.index("warning: ") :].strip() for line in lines if "warning: " in line]


# ---------------------------------------------------------------------------------------------
# The folder


@pytest.mark.parametrize(
    ("policy", "replay"),
    [
        ("never", []),
        ("last", ["frames_0000000040.replay"]),
        ("always", ["frames_0000000030.replay", "frames_0000000040.replay"]),
    ],
)
def test_which_checkpoints_keep_the_replay_buffer(
    dime: Build, policy: str, replay: list[str]
) -> None:
    run = trained(dime(checkpoint_replay=policy))
    checkpoints = ["frames_0000000030.ckpt", "frames_0000000040.ckpt", "last.ckpt"]
    assert names(run.output) == sorted(checkpoints + replay)
    folder = run.output / "checkpoints"
    assert (folder / "last.ckpt").read_bytes() == (folder / checkpoints[1]).read_bytes()
    for name in checkpoints:
        saved = Checkpoint.read(folder / name).state["replay"]
        assert (saved is not None) == (policy != "never")


def test_a_checkpoint_never_finds_the_replay_buffer_of_another_one(dime: Build) -> None:
    run = trained(dime(checkpoint_replay="always"))
    before = Checkpoint.read(run.output / "checkpoints" / "frames_0000000040.ckpt").state
    earlier = str(run.output / "checkpoints" / "frames_0000000030.ckpt")
    trained(dime(checkpoint_replay="always", resume=earlier))
    after = Checkpoint.read(run.output / "checkpoints" / "frames_0000000040.ckpt").state
    assert before["replay"] != after["replay"]
    assert names(run.output).count("frames_0000000040.replay") == 1
    assert (run.output / "checkpoints" / after["replay"] / "rank0.pt").is_file()


def test_what_a_killed_writer_left_is_removed_and_touches_no_checkpoint(dime: Build) -> None:
    run = trained(dime())
    folder = run.output / "checkpoints"
    kept = (folder / "frames_0000000040.ckpt").read_bytes()
    # Killed between the second name of a checkpoint and the rename to last.ckpt.
    os.link(folder / "frames_0000000040.ckpt", folder / ".last.ckpt.tmp")
    (folder / ".frames_0000000050.ckpt.tmp").write_bytes(b"half")
    (folder / "frames_0000000050-0123abcd.replay").mkdir()
    (folder / "frames_0000000050-0123abcd.replay" / ".rank0.pt.tmp").write_bytes(b"half")
    trained(dime(resume="last", total_frames=60))
    assert (folder / "frames_0000000040.ckpt").read_bytes() == kept
    assert [name for name in names(run.output) if not name.endswith(".ckpt")] == [
        "frames_0000000060.replay"
    ]
    assert [path for path in folder.glob("*0123abcd*")] == []


def test_last_is_a_copy_where_files_cannot_have_two_names(
    dime: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    folder = trained(dime()).output / "checkpoints"
    assert (folder / "last.ckpt").stat().st_nlink == 1
    assert Checkpoint.read(folder / "last.ckpt").state["frames"] == 40


# ---------------------------------------------------------------------------------------------
# A full disk


class FullDisk(StopSignal):
    """No file of this process can grow beyond ``limit`` bytes from one iteration to another."""

    def __init__(self, first: int, last: int, limit: int) -> None:
        super().__init__()
        self.iterations = 0
        self.range = range(first, last + 1)
        self.limit = limit
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def requested(self) -> bool:
        # Asked once in an iteration, before anything of it is written.
        self.iterations += 1
        limit = self.limit if self.iterations in self.range else self.before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self.before[1]))
        return False


def numbered(output: Path) -> list[int]:
    """Environment steps of the numbered checkpoints."""
    return [int(n[7:17]) for n in names(output) if n.startswith("frames") and n.endswith(".ckpt")]


def test_training_goes_on_when_the_disk_is_full(
    dime: Build, capsys: pytest.CaptureFixture[str], read_run: ReadRun
) -> None:
    # Iterations 2 and 3 end after 40 and 50 steps.
    disk = FullDisk(first=2, last=3, limit=0)
    try:
        run = trained(dime(total_frames=70, eval_every=10), disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, disk.before)
    assert numbered(run.output) == [30, 60, 70]
    assert Checkpoint.read(run.output / "checkpoints" / "last.ckpt").state["frames"] == 70
    results, rows = read_run(run.output)
    assert [int(row["frames"]) for row in rows] == [30, 40, 50, 60, 70], "rows have waited"
    assert [e["env_steps"] for e in results["evaluations"]] == [0, 30, 40, 50, 60, 70]
    assert list(run.output.rglob(".*.tmp")) == []
    (line,) = warnings_in(capsys.readouterr().err)
    assert "could not be written: [Errno 27] File too large" in line
    assert trained(dime(resume="last", total_frames=80)).module.progress.frames == 80
    assert warnings_in(capsys.readouterr().err) == []


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(dime: Build) -> None:
    run = prepare(dime())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"^--output .*run cannot be written to: .*large"):
            train(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_two_ranks_go_on_when_the_disk_is_full(
    dime: Build, capfd: pytest.CaptureFixture[str], read_run: ReadRun
) -> None:
    # Large enough for the console and the replay buffers, too small for a checkpoint.
    disk = FullDisk(first=2, last=3, limit=20_000)
    run = trained(dime(total_frames=140, cpu_ranks=2), disk)
    assert numbered(run.output) == [60, 120, 140]
    assert names(run.output)[-2:] == ["frames_0000000140.replay", "last.ckpt"]
    assert len(warnings_in(capfd.readouterr().err)) == 1
    assert len(read_run(run.output)[1]) == 5
    assert trained(dime(resume="last", total_frames=160, cpu_ranks=2)).frames == 140
    assert warnings_in(capfd.readouterr().err) == []


def test_a_checkpoint_that_does_not_fit_leaves_no_replay_buffer_behind(dime: Build) -> None:
    # Large enough for the replay buffer, too small for the checkpoint.
    disk = FullDisk(first=2, last=2, limit=20_000)
    try:
        run = trained(dime(), disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, disk.before)
    assert names(run.output) == ["frames_0000000030.ckpt", "frames_0000000030.replay", "last.ckpt"]


def test_a_replay_buffer_that_does_not_fit_leaves_a_checkpoint_without_it(
    dime: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plain = files.write_plain

    def too_small(path: Path, content: Any) -> None:
        if path.name == "rank0.pt" and "40" in path.parent.name:
            path.with_name(".rank0.pt.tmp").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write_plain(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_plain", too_small)
        run = trained(dime())
    (line,) = warnings_in(capsys.readouterr().err)
    assert "the replay buffer of frames_0000000040.ckpt could not be written" in line
    # The buffer of the checkpoint before stays: it is the newest one.
    assert [n for n in names(run.output) if n.endswith("replay")] == ["frames_0000000030.replay"]
    trained(dime(resume="last", total_frames=70))
    (line,) = warnings_in(capsys.readouterr().err)
    assert "made without the replay buffer" in line


def test_metrics_are_whole_rows_after_a_partial_write(
    dime: Build, monkeypatch: pytest.MonkeyPatch, read_run: ReadRun
) -> None:
    run = trained(dime(total_frames=60))
    before = read_run(run.output)[1]
    path = run.output / "metrics.csv"
    # Killed while the fifth row was written: the run goes on from 60 steps.
    with path.open("a") as file:
        file.write("7,0.")
    trained(dime(resume="last", total_frames=80))
    after = read_run(run.output)[1]
    assert after[: len(before)] == before
    assert [int(row["frames"]) for row in after] == [30, 40, 50, 60, 70, 80]


def test_a_logger_that_fails_is_left_out(
    dime: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def fails(self: Any, metrics: dict[str, float], step: int | None = None) -> None:
        calls.append(step or 0)
        if len(calls) > 1:
            raise ConnectionError("the service is gone")

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger.log_metrics", fails)
    run = trained(dime(logger=("tensorboard",)))
    assert run.module.progress.frames == 40
    assert calls == [0, 30]
    (line,) = warnings_in(capsys.readouterr().err)
    assert line.startswith("warning: TensorBoardLogger has failed and gets no more metrics")
    assert "ConnectionError: the service is gone" in line


# ---------------------------------------------------------------------------------------------
# Rows of loggers


def tensorboard_steps(output: Path, name: str) -> list[int]:
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


@pytest.mark.parametrize("checkpoint", ["frames_0000000040.ckpt", "first.ckpt"])
def test_loggers_have_every_row_once(
    dime: Build, read_run: ReadRun, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"logger": ("tensorboard",), "eval_every": 20, "total_frames": 60}
    config = dime(**options, checkpoint_replay="always")
    run = prepare(config)
    write = files.write_plain

    def keep_first(path: Path, content: Any) -> None:
        write(path, content)
        if path.name == "last.ckpt":
            shutil.copyfile(path, path.with_name("first.ckpt"))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_plain", keep_first)
        assert train(run)
    rows = read_run(run.output)[1]
    earlier = str(run.output / "checkpoints" / checkpoint)
    trained(dataclasses.replace(config, resume=earlier))
    assert read_run(run.output)[1] == rows
    assert tensorboard_steps(run.output, "loss_qvalue") == [30, 40, 50, 60]
    assert tensorboard_steps(run.output, "eval_return_mean") == [0, 30, 40, 60]


def test_what_was_logged_is_on_the_disk_with_the_checkpoint(
    dime: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[int]] = []
    write = files.write_plain

    def look(path: Path, content: Any) -> None:
        write(path, content)
        if path.name.startswith("frames"):
            output = path.parents[1]
            found.append(tensorboard_steps(output, "loss_qvalue"))

    monkeypatch.setattr(files, "write_plain", look)
    trained(dime(logger=("tensorboard",), checkpoint_replay="never"))
    assert found == [[30], [30, 40]]


# ---------------------------------------------------------------------------------------------
# Bad files


class Boom:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def bad_contents(good: bytes, folder: Path) -> dict[str, bytes]:
    """Contents of files that are no checkpoints."""
    torch.save({"weight": torch.zeros(2)}, folder / "foreign")
    torch.save({"diffpolicy": Boom(folder / "ran")}, folder / "code")
    torch.save([1, 2], folder / "old", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        tensor = max(archive.infolist(), key=lambda part: part.file_size)
    lengths = struct.unpack_from("<HH", good, tensor.header_offset + 26)
    flipped = bytearray(good)
    flipped[tensor.header_offset + 30 + sum(lengths)] ^= 1
    return {
        "empty": b"",
        "text": b"hello world",
        "truncated": good[: len(good) // 2],
        "one byte short": good[:-1],
        "random": random.Random(0).randbytes(5000),
        "one bit of a tensor": bytes(flipped),
        "foreign": (folder / "foreign").read_bytes(),
        "old format": (folder / "old").read_bytes(),
        "code": (folder / "code").read_bytes(),
        "bare code": pickle.dumps(Boom(folder / "ran")),
    }


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint."""
    output = tmp_path_factory.mktemp("good")
    tiny = {"learning_starts": 4, "iteration_frames": 4, "batch_size": 2, "total_frames": 8}
    sizes = {"actor_hidden_sizes": (2,), "critic_hidden_sizes": (2,), "max_episode_steps": 4}
    config = DIMEConfig(
        output=str(output), logger=("csv",), eval_episodes=1, replay_size=8, **tiny, **sizes
    )
    assert train(prepare(config))
    return (output / "checkpoints" / "last.ckpt").read_bytes()


def test_bad_checkpoints_are_refused_in_one_sentence(good: bytes, tmp_path: Path) -> None:
    for name, content in bad_contents(good, tmp_path).items():
        path = tmp_path / "bad.ckpt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^resume='.*bad\.ckpt' is not a .*\.$") as raised:
            Checkpoint.read(path)
        assert str(raised.value).count(". ") == 0, name
    assert not (tmp_path / "ran").exists(), "code in a checkpoint has been executed"
    path.unlink()
    with pytest.raises(ValueError, match=r"bad\.ckpt' does not exist\.$"):
        Checkpoint.read(path)
    with pytest.raises(ValueError, match=r"is not a readable checkpoint: Is a directory\.$"):
        Checkpoint.read(tmp_path)


def test_no_damage_gets_past_as_anything_but_a_refusal(good: bytes, tmp_path: Path) -> None:
    path, draw = tmp_path / "bad.ckpt", random.Random(0)
    path.write_bytes(good)
    assert Checkpoint.read(path).state["frames"] == 8
    for _ in range(200):
        content = bytearray(good[: draw.randrange(len(good))] if draw.random() < 0.5 else good)
        for _ in range(draw.randrange(1, 40)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(bytes(content))
        # Any other exception is a failure; bytes that fill up gaps between the parts may change.
        with suppress(ValueError):
            assert Checkpoint.read(path).state["frames"] == 8


def test_the_newest_good_checkpoint_is_found(
    good: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert Checkpoint.newest(str(tmp_path)) is None
    assert capsys.readouterr().out == f"there is no run in {tmp_path} yet: starting one\n"
    for frames in (9, 100, 1000):
        (folder / f"frames_{frames:010d}.ckpt").write_bytes(good)
    assert Checkpoint.newest(str(tmp_path)).path == folder / "frames_0000001000.ckpt"
    (folder / "last.ckpt").write_bytes(good)
    assert Checkpoint.newest(str(tmp_path)).path == folder / "last.ckpt"
    assert capsys.readouterr().err == ""
    (folder / "last.ckpt").write_bytes(good[:-100])
    (folder / "frames_0000001000.ckpt").write_bytes(b"")
    assert Checkpoint.newest(str(tmp_path)).path == folder / "frames_0000000100.ckpt"
    lines = warnings_in(capsys.readouterr().err)
    assert len(lines) == 2
    assert "last.ckpt is not a readable checkpoint: it is cut off" in lines[0]
    assert "frames_0000001000.ckpt is not a readable checkpoint: it is cut off" in lines[1]
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read"):
        Checkpoint.newest(str(tmp_path))


def test_resume_last_on_the_command_line(dime: Build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--resume last needs the folder of the run"):
        parse_config(DIMEConfig, {"resume": "last"})
    output = str(tmp_path / "run")
    assert parse_config(DIMEConfig, {"resume": "last", "output": output})[0].resume is None
    run = trained(dime())
    given = {"resume": "last", "output": output, "total_frames": 50}
    config, checkpoint = parse_config(DIMEConfig, given)
    assert config.resume == str(run.output / "checkpoints" / "last.ckpt")
    assert config.iteration_frames == 10, "flags that are not given keep the checkpoint's values"
    assert checkpoint is not None
    assert prepare(config, checkpoint=checkpoint).frames == checkpoint.frames == 40
    with pytest.raises(RunFinishedError, match=f"finished before; results are in {output}"):
        parse_config(DIMEConfig, {"resume": "last", "output": output})
    assert run_script(METHODS["dime"], ["--resume", "last", "--output", output]) == 0


def test_a_checkpoint_is_read_once(dime: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    output = trained(dime()).output
    load, names = torch.load, []

    def counted(file: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(Path(str(file)).name)
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counted)
    argv = ["--resume", "last", "--output", str(output), "--total-frames", "60"]
    assert run_script(METHODS["dime"], argv) == 0
    assert Checkpoint.read(output / "checkpoints" / "last.ckpt").frames == 60
    # The last one is that of the line above.
    assert names == ["last.ckpt", "rank0.pt", "last.ckpt"]


def test_a_run_in_a_new_folder_takes_its_checkpoint_along(
    dime: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(dime())
    last = str(first.output / "checkpoints" / "last.ckpt")
    second = dime(resume=last, output=str(tmp_path / "second"), total_frames=60)
    run = prepare(second)

    def fail(self: Updates, batch: Any, number: int, **options: Any) -> None:
        raise TrainingError("No update works.")

    # It ends before its first own checkpoint.
    monkeypatch.setattr(Updates, "step", fail)
    with pytest.raises(TrainingError, match=r"No update works\. The last good checkpoint"):
        train(run)
    assert [name for name in names(run.output) if name.endswith(".ckpt")] == [
        "frames_0000000040.ckpt",
        "last.ckpt",
    ]
    given = {"resume": "last", "output": str(run.output), "total_frames": 60}
    again, _ = parse_config(DIMEConfig, given)
    assert continuation(Checkpoint.read(again.resume).state, again).replay is not None


def test_a_checkpoint_without_states_of_the_ranks_goes_on_in_a_new_folder(
    dime: Build, tmp_path: Path
) -> None:
    """Such checkpoints were written before these states were part of them."""
    content = torch.load(trained(dime()).output / "checkpoints" / "last.ckpt", weights_only=True)
    for name in ("ranks", "replay"):
        del content[files.CHECKPOINT_KEY][name]
    torch.save(content, tmp_path / "old.ckpt")
    options = {"resume": str(tmp_path / "old.ckpt"), "total_frames": 70}
    run = trained(dime(output=str(tmp_path / "second"), **options))
    assert numbered(run.output) == [40, 70]


# ---------------------------------------------------------------------------------------------
# When not all of it goes on


def replay_path(output: Path) -> Path:
    folder = output / "checkpoints"
    name = Checkpoint.read(folder / "last.ckpt").state["replay"]
    return folder / name / "rank0.pt"


def only_warning(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    (line,) = warnings_in(capsys.readouterr().err)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_envs": 5}, ("--num-envs was 2 and is 5", "So episodes start anew.")),
        ({"seed": 7}, ("--seed was 0 and is 7", "So episodes start anew.")),
        ({"max_episode_steps": 5}, ("--max-episode-steps was 10 and is 5", "So episodes")),
    ],
)
def test_episodes_start_anew_where_options_say_so(
    dime: Build, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    run = trained(dime())
    before = run.module.stream.buffer[:]["action"].clone()
    assert warnings_in(capsys.readouterr().err) == []
    # With the replay buffer there is no need of steps to fill it.
    module = trained(dime(resume="last", total_frames=50, **changes)).module
    only_warning(capsys, "does not go on exactly", *words)
    assert module.progress.frames == 50
    assert torch.equal(module.stream.buffer[:]["action"][: len(before)], before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replay_size": 500}, ("--replay-size was 1000 and is 500",)),
        ({"cpu_ranks": 2, "total_frames": 110}, ("that of 1 rank(s)", "this run has 2")),
    ],
)
def test_the_replay_buffer_is_filled_again_where_options_say_so(
    dime: Build, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    trained(dime())
    steps = 20 * changes.get("cpu_ranks", 1)
    with pytest.raises(ValueError, match=rf"40 that .* and {steps} to fill the replay buffer"):
        prepare(dime(resume="last", **changes | {"total_frames": 40 + steps}))
    run = trained(dime(resume="last", **{"total_frames": 70, **changes}))
    (line,) = warnings_in(capfd.readouterr().err)
    assert all(word in line for word in words), line
    assert f"first filled again with {steps} steps of the policy" in line
    assert Checkpoint.read(run.output / "checkpoints" / "last.ckpt").state["frames"] >= 70


def gone(path: Path) -> None:
    shutil.rmtree(path.parent)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def with_code(path: Path) -> None:
    torch.save({"rows": Boom(path.parents[2] / "ran")}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (gone, "is not there any more"),
        (cut_off, "it is cut off"),
        (with_code, "more than plain data, which is never loaded"),
    ],
)
def test_a_replay_buffer_that_cannot_be_read_is_filled_again(
    dime: Build,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    run = trained(dime())
    damage(replay_path(run.output))
    module = trained(dime(resume="last", total_frames=70)).module
    only_warning(capsys, words, "episodes start anew", "filled again with 20 steps")
    assert len(module.stream.buffer) == 30, "20 steps to fill it, 10 of an iteration"
    assert not (run.output / "ran").exists(), "code in a replay buffer has been executed"


def test_one_damaged_replay_buffer_is_filled_again_by_all_ranks(
    dime: Build, capfd: pytest.CaptureFixture[str]
) -> None:
    run = trained(dime(cpu_ranks=2, total_frames=80))
    cut_off(replay_path(run.output).with_name("rank1.pt"))
    trained(dime(cpu_ranks=2, resume="last", total_frames=140))
    (line,) = warnings_in(capfd.readouterr().err)
    assert "it is cut off" in line
    assert "filled again with 40 steps" in line
    last = Checkpoint.read(run.output / "checkpoints" / "last.ckpt").state
    assert last["frames"] == 140, "80, 40 to fill the buffers, 20 of an iteration"


def test_episodes_that_do_not_fit_start_anew(
    dime: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    last = trained(dime()).output / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["diffpolicy"]["ranks"][0]["stream"]["collector"]["generators"]
    torch.save(checkpoint, last)
    module = trained(dime(resume="last", total_frames=70)).module
    only_warning(capsys, "what the checkpoint holds does not fit", "episodes start anew")
    assert module.progress.frames == 70


class Stateful(gym.Env[Any, Any]):
    """Holds something whose state cannot be saved."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.generator = (number for number in range(10**9))
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), float(next(self.generator) % 3), False, False, {}


def test_environments_that_cannot_be_saved_are_named_once(
    dime: Build, capsys: pytest.CaptureFixture[str], register: Register
) -> None:
    options = {"env": register(Stateful), "value_range": (-10.0, 10.0)}
    trained(dime(**options))
    only_warning(capsys, "checkpoints of this run do not hold its episodes", "Stateful")
    module = trained(dime(**options, resume="last", total_frames=60)).module
    lines = warnings_in(capsys.readouterr().err)
    assert len(lines) == 2, "one of the resumed run, one of its own checkpoints"
    assert "does not go on exactly" in lines[0]
    assert "Stateful" in lines[0]
    assert lines[0].endswith("So episodes start anew.")
    assert module.progress.frames == 60


# ---------------------------------------------------------------------------------------------
# Failures


class Breaks(gym.Env[Any, Any]):
    """Raises, or observes NaN, at the step that ``breaks_at`` says."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    steps = 0
    breaks_at = 10**9
    value: float | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        Breaks.steps += 1
        if Breaks.steps >= Breaks.breaks_at:
            if Breaks.value is None:
                raise ValueError("the simulator has exploded")
            return np.full(2, Breaks.value, np.float32), 0.0, False, False, {}
        return np.zeros(2, np.float32), 1.0, False, False, {}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_failure_keeps_the_checkpoint_before_it(
    dime: Build, register: Register, monkeypatch: pytest.MonkeyPatch, value: float | None
) -> None:
    monkeypatch.setattr(Breaks, "steps", 0)
    monkeypatch.setattr(Breaks, "value", value)
    # 20 steps of an evaluation, 20 random ones, then in the middle of the second iteration.
    monkeypatch.setattr(Breaks, "breaks_at", 20 + 20 + 10 + 5)
    options = {"env": register(Breaks), "value_range": (-10.0, 10.0), "total_frames": 100}
    run = prepare(dime(**options))
    with pytest.raises(TrainingError, match="The last good checkpoint is"):
        train(run)
    assert names(run.output) == [
        *("frames_0000000030.ckpt", "frames_0000000030.replay", "last.ckpt")
    ]
    monkeypatch.setattr(Breaks, "breaks_at", 10**9)
    resumed = trained(dime(**options, resume="last"))
    assert resumed.module.progress.frames == 100
