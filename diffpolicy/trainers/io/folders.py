"""The folder of a run: which one it is, and that one process at a time trains in it."""

import fcntl
import os
import re
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path

from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.io.console import warn
from diffpolicy.trainers.io.files import CHECKPOINT_FOLDER, LAST_CHECKPOINT

LOCK_FILE = ".lock"


class FolderLock:
    """The right to write into a folder, held by one run at a time.

    It is a lock of the system (flock) on a file in the folder, which the ranks that a run forks
    hold with it. The system frees it with the last of these processes, even after ``kill -9``.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock, unless it is held already.

        Raises:
            ArgumentError: another run has it.
            OSError: the folder cannot be written to.
        """
        if self._file is not None:
            return
        file = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise ArgumentError(
                "output",
                str(self.folder),
                f"is in use by a run ({holder}); wait until it has ended, or give another folder.",
            ) from None
        except OSError as error:
            warn(
                f"the file system of --output {self.folder} has no locks ({error.strerror}): do "
                "not start another run in this folder."
            )
        self._file = file
        # Only words for the message above; a full disk must not keep a run from going on.
        with suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back, for the forked ranks, too."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)

    def __del__(self) -> None:
        """Give the lock back with a run that was prepared and never trained."""
        # Not the unlock, which would free the lock of the process that has forked this one.
        if self._file is not None:
            os.close(self._file)


def output_folder(config: RunConfig) -> Path:
    """Choose the folder of a run, without creating it.

    ``--output``, else the folder of the run that ``--resume`` continues, else a new one in runs/.
    No two calls choose the same new one, on one machine or on several.

    Raises:
        ValueError: if the folder holds another run, or is a file.
    """
    if config.output is not None:
        folder = Path(config.output)
    elif (resumed := _resumed_folder(config)) is not None:
        folder = resumed
    else:
        name = re.sub(r"[^\w.-]+", "_", f"{config.method}-{config.env_name}-seed{config.seed}")
        # Not of the generators that --seed determines.
        unique = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        folder = Path("runs") / f"{name}-{unique}"
    if folder.exists() and not folder.is_dir():
        raise ArgumentError("output", str(folder), "is a file; give a folder.")
    check_unused(folder, config)
    return folder


def check_unused(folder: Path, config: RunConfig) -> None:
    """Raise ArgumentError if ``folder`` holds another run than that which ``config`` resumes."""
    last = folder / CHECKPOINT_FOLDER / LAST_CHECKPOINT
    if last.exists() and folder.resolve() != _resumed_folder(config):
        raise ArgumentError(
            "output",
            str(folder),
            "already holds a run; choose another folder, or continue that run with --resume "
            f"{last}.",
        )


def remove_temporaries(folder: Path) -> None:
    """Remove what an earlier run was writing into ``folder`` when it was killed."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def _resumed_folder(config: RunConfig) -> Path | None:
    """The folder of the run that wrote the checkpoint; None without one, or if it was moved."""
    if config.resume is None:
        return None
    folder = Path(config.resume).resolve().parent
    return folder.parent if folder.name == CHECKPOINT_FOLDER else None
