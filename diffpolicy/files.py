"""Files of runs and policies: atomic writing, reading plain data, their names.

Whatever is written is complete or not there: it goes into a temporary file in the same folder, onto
the disk, and then in place of the old file. Whatever is read back is plain data (tensors, numbers,
text and their containers): torch's restricted unpickler refuses anything that could run code.
"""

import importlib.metadata
import json
import os
import pickle
import platform
import uuid
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

RESULTS_FILE = "results.json"
PLOT_FILE = "returns.png"
CHECKPOINT_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
CHECKPOINT_KEY = "diffpolicy"
_PACKAGES = ("diffpolicy", "torch", "torchrl", "tensordict", "gymnasium", "mujoco", "lightning")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that readers, and a run that is killed, see all of it or the old one.

    Args:
        path: the file.
        write: writes the content to the path that it is given, in the same folder.
    """
    # A name of its own: another process may be writing the same file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_plain(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data with ``torch.save``, atomically.

    Raises:
        OSError: if the disk does not take it.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:
                # Closing its archive, torch trips over what the failed write has left.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    write_atomically(path, write)


def read_plain(path: Path, *, mmap: bool = False) -> Any:
    """Read what :func:`write_plain` has written; nothing in the file is executed.

    Args:
        path: the file.
        mmap: leave the tensors in the file until they are used.

    Raises:
        ValueError: if it cannot be read, with the reason.
    """
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except zipfile.BadZipFile as error:
        raise ValueError("it is cut off, or not a checkpoint at all") from error
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than plain data, which is never loaded") from error
    # A damaged archive can fail in any way, and none of them is a reason for a traceback.
    except Exception as error:
        raise ValueError("it is damaged") from error


def _check_archive(path: Path) -> None:
    """Compare every part of a file of ``torch.save`` with its checksum, which torch does not."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:
            raise ValueError("a part of it has another checksum")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    # Each is looked up among all packages that are installed: a tenth of a second for all of them.
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Run from a checkout that is not installed.
            found[package] = "not installed"
    return found
