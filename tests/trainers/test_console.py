"""Consoles of every kind, none of which is a reason to end a run."""

import errno
import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

import pytest

from diffpolicy.trainers import METHODS, DiffPPOConfig, prepare, run_script, train
from diffpolicy.trainers.io import console as console_module
from diffpolicy.trainers.io.console import STDERR, STDOUT, fail, say, warn
from diffpolicy.trainers.run.parser import Parser

SmallConfig = Callable[..., DiffPPOConfig]


class Broken(io.TextIOBase):
    """Raises whenever it is written to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


def ascii_console() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)


def closed_console() -> io.TextIOWrapper:
    stream = ascii_console()
    stream.close()
    return stream


def written(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("ascii")


CONSOLES: dict[str, Callable[[], Any]] = {
    "ascii": ascii_console,
    "closed": closed_console,
    "none": lambda: None,
    "nobody reads": lambda: Broken(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "full disk": lambda: Broken(OSError(errno.ENOSPC, "No space left on device")),
}


@pytest.mark.parametrize("kind", CONSOLES)
def test_a_run_does_not_depend_on_its_console(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, CONSOLES[kind]())
    run = prepare(small_config(total_frames=128))
    assert train(run)
    for line in (say, warn, fail):
        line("naïve ± 1 → 2")
    assert (run.output / "checkpoints" / "last.ckpt").exists()
    if kind == "ascii":
        assert " +- " in written(sys.stdout)  # type: ignore[arg-type]
        assert written(sys.stdout).endswith("na?ve +- 1 ? 2\n")  # type: ignore[arg-type]
        assert "warning: na?ve +- 1 ? 2\n" in written(sys.stderr)  # type: ignore[arg-type]
        # A bar of characters that the console has.
        assert "100%|#" in written(sys.stderr)  # type: ignore[arg-type]


def test_help_and_errors_on_a_console_that_knows_ascii_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", ascii_console())
    monkeypatch.setattr(sys, "stderr", ascii_console())
    with pytest.raises(SystemExit) as left:
        Parser(DiffPPOConfig, "Training ± noise").parse_options(["--help"])
    assert left.value.code == 0
    assert "Training +- noise" in written(sys.stdout)
    assert "--total-frames" in written(sys.stdout)
    with pytest.raises(SystemExit) as left:
        run_script(METHODS["diffppo"], ["--env", "Ünknown-v0"])
    assert left.value.code == 2
    assert written(sys.stderr).count("\n") == 1
    assert "?nknown-v0" in written(sys.stderr)


def test_lines_stand_above_the_bar_and_leave_it_whole(
    small_config: SmallConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(prepare(small_config(total_frames=128)))
    out, err = capfd.readouterr()
    assert [line.split(" frames: ")[0] for line in out.splitlines()] == [
        "evaluation at 0",
        "evaluation at 128",
    ]
    assert err.rstrip("\n").rpartition("\r")[2].startswith("100%|")


def test_a_terminal_without_a_width(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert STDERR.isatty()
        assert train(prepare(small_config(total_frames=128)))
        terminal.flush()
        assert b"frames/s" in os.read(master, 100_000)
    os.close(master)


@pytest.mark.parametrize("kind", ["pipe", "full disk"])
def test_what_waits_for_a_broken_console_does_not_fail_at_the_end(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Python would end with exit code 120 and a message about an exception that it ignores."""
    if kind == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say("lost")
        with pytest.raises(OSError, match=r"Broken pipe|No space"):
            stream.flush()
        STDOUT.settle()
        stream.flush()
        assert os.path.samestat(os.fstat(writing), os.stat(os.devnull))


def test_only_the_first_process_speaks_but_any_may_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console_module, "is_first_process", lambda: False)
    say("said")
    warn("warned")
    fail("failed")
    assert tuple(capsys.readouterr()) == ("", "failed\n")
