"""Files of a run: atomic writing, the output folder, versions, checkpoint headers."""

import importlib.metadata
import json
import os
import pickle
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from diffpolicy.trainers.config import RunConfig

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.csv"
TIMING_FILE = "timing.csv"
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
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Run from a checkout that is not installed.
            found[package] = "not installed"
    return found


def output_folder(config: RunConfig) -> Path:
    """Choose the folder of a run, without creating it.

    ``--output``, else the folder of the run that ``--resume`` continues, else a new one in runs/.

    Raises:
        ValueError: if the folder holds another run, or is a file.
    """
    resumed = None if config.resume is None else _folder_of_checkpoint(Path(config.resume))
    if config.output is not None:
        folder = Path(config.output)
    elif resumed is not None:
        folder = resumed
    else:
        name = re.sub(r"[^\w.-]+", "_", f"{config.method}-{config.env}-seed{config.seed}")
        folder = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file; give a folder.")
    last = folder / CHECKPOINT_FOLDER / LAST_CHECKPOINT
    if last.exists() and folder.resolve() != resumed:
        raise ValueError(
            f"--output {folder} already holds a run; choose another folder, or continue that run "
            f"with --resume {last}."
        )
    return folder


def _folder_of_checkpoint(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint; None if the file has been moved."""
    folder = path.resolve().parent
    return folder.parent if folder.name == CHECKPOINT_FOLDER else None


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read what our modules added to a Lightning checkpoint.

    Raises:
        ValueError: if there is no such file or it is not one of our checkpoints.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"--resume {path}: there is no such file.") from None
    # Files that are no pickles make the unpickler look things up that are not there.
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(f"--resume {path} is not a readable checkpoint.") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise ValueError(f"--resume {path} is not a checkpoint of a diffpolicy run.")
    state: dict[str, Any] = checkpoint[CHECKPOINT_KEY]
    return state


def check_method(path: str, state: Mapping[str, Any], method: str) -> None:
    """Raise ValueError unless the checkpoint at ``path`` is of ``method``."""
    found = state["metadata"]["method"]
    if found != method:
        raise ValueError(f"--resume {path} is a checkpoint of {found}, but this run is {method}.")


def check_metadata(path: str, state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare a checkpoint with the run that is to continue it.

    Raises:
        ValueError: for another method, environment or network shape, naming the difference.
    """
    check_method(path, state, expected["method"])
    found = state["metadata"]
    for flag, ours in expected["options"].items():
        theirs = found["options"].get(flag)
        if theirs != ours:
            raise ValueError(
                f"--resume {path} was trained with {flag} {theirs}, which cannot change to {ours}."
            )
    check_shapes(path, found["shapes"], expected["shapes"])


def check_shapes(path: str, theirs: Mapping[str, list[int]], ours: Mapping[str, list[int]]) -> None:
    """Raise ValueError unless the tensors of a checkpoint are those of this run."""
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"--resume {path} has other networks: {name} is {theirs.get(name, 'absent')} there "
                f"and {ours.get(name, 'absent')} here."
            )
