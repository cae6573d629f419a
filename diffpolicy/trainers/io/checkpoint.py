"""A checkpoint that a run continues, read once and passed on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from diffpolicy import __version__
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.options import in_flags
from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.console import say, warn

#: Where the state of a checkpoint says that its policy was cloned from demonstrations.
CLONE_KEY = "cloned"
#: Where it says that its networks were trained on a data set.
OFFLINE_KEY = "offline"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of one of our runs.

    Attributes:
        path: the file.
        content: all that Lightning has written: networks, optimisers, and our own ``state``.
        written: when the file was written, in nanoseconds.
    """

    path: Path
    content: dict[str, Any]
    written: int

    @property
    def state(self) -> dict[str, Any]:
        """What our modules have added: counters, configuration, what the ranks need to go on."""
        state: dict[str, Any] = self.content[files.CHECKPOINT_KEY]
        return state

    @property
    def version(self) -> str:
        """The version of diffpolicy that has written it."""
        return str(self.state.get("versions", {}).get("diffpolicy", "before 0.1.0"))

    @property
    def run_folder(self) -> Path:
        """The folder of its run."""
        folder = self.path.resolve().parent
        return folder.parent if folder.name == files.CHECKPOINT_FOLDER else folder

    @property
    def cloned(self) -> bool:
        """Whether its policy was cloned from demonstrations, and nothing else was trained."""
        return CLONE_KEY in self.state

    @property
    def from_data(self) -> str:
        """What was done to its networks without steps of the environment, empty if nothing was."""
        done = {CLONE_KEY: "cloned", OFFLINE_KEY: "trained offline"}
        return next((words for key, words in done.items() if key in self.state), "")

    @property
    def frames(self) -> int:
        """Environment steps, of all ranks, before it was written."""
        return int(self.state["frames"])

    @classmethod
    def read(cls, path: str | Path, argument: str = "resume") -> Self:
        """Read a file.

        Args:
            path: the file.
            argument: what the error names.

        Raises:
            ArgumentError: if there is no such file or it is not one of our checkpoints.
        """
        path = Path(path)
        try:
            written = _written(path)
            content = files.read_plain(path)
        except ValueError as error:
            if not path.exists():
                raise ArgumentError(argument, str(path), "does not exist.") from None
            problem = f"is not a readable checkpoint: {error}."
            raise ArgumentError(argument, str(path), problem) from error
        state = content.get(files.CHECKPOINT_KEY) if isinstance(content, dict) else None
        if not isinstance(state, dict) or not {"metadata", "config", "frames"} <= state.keys():
            raise ArgumentError(argument, str(path), "is not a checkpoint of a diffpolicy run.")
        _complete(content.get("state_dict", {}), state["metadata"].get("shapes", {}))
        return cls(path, content, written)

    @classmethod
    def of_run(cls, source: str | Path, argument: str) -> Self:
        """The newest checkpoint of the run in a folder, or a checkpoint by the name of its file.

        Raises:
            ArgumentError: naming ``argument``, if there is none, or it cannot be read.
        """
        path = Path(source)
        if not path.is_dir():
            return cls.read(path, argument)
        for folder in (path / files.CHECKPOINT_FOLDER, path):
            found = [folder / files.LAST_CHECKPOINT, *sorted(folder.glob("frames_*.ckpt"))[::-1]]
            for file in found:
                if file.exists():
                    return cls.read(file, argument)
        raise ArgumentError(argument, str(source), "is a folder without a run; give that of a run.")

    @classmethod
    def newest(cls, output: str | None) -> Self | None:
        """The newest good checkpoint of the run in ``output``: what ``--resume last`` stands for.

        That is ``last.ckpt``, else the numbered checkpoint with the most steps. Bad ones are named
        in a warning.

        Returns:
            None, and a line that says so, if the folder holds no checkpoint at all.

        Raises:
            ValueError: without ``output``, or if there are checkpoints and all of them are bad.
        """
        if output is None:
            raise ValueError(
                f"--resume {files.NEWEST} needs the folder of the run: give --output, too."
            )
        folder = Path(output) / files.CHECKPOINT_FOLDER
        numbered = sorted(folder.glob("frames_*.ckpt"), reverse=True)
        found = [path for path in (folder / files.LAST_CHECKPOINT, *numbered) if path.exists()]
        for path in found:
            try:
                return cls.read(path)
            except ValueError as error:
                warn(f"{in_flags(error).rstrip('.')}; trying an older one.")
        if found:
            raise ValueError(
                f"--resume {files.NEWEST}: no checkpoint in {folder} can be read; start anew with "
                "another --output."
            )
        say(f"there is no run in {output} yet: starting one")
        return None

    @classmethod
    def find(cls, resume: str | None, output: str | None, method: str) -> Self | None:
        """The checkpoint that ``--resume`` and ``--output`` name, None if the run starts anew.

        Raises:
            ValueError: if it cannot be read, or is of another method.
        """
        if resume is None:
            return None
        checkpoint = cls.newest(output) if resume == files.NEWEST else cls.read(resume)
        if checkpoint is not None:
            theirs = checkpoint.state["metadata"]["method"]
            if theirs != method:
                raise ValueError(
                    f"--resume {checkpoint.path} is a checkpoint of {theirs}, but this run is "
                    f"{method}."
                )
            if checkpoint.from_data:
                raise ValueError(
                    f"--resume {checkpoint.path} is a policy that was {checkpoint.from_data}, with "
                    f"which a run begins: --init-from {checkpoint.run_folder}."
                )
        return checkpoint

    def check_newest(self) -> None:
        """Make sure that the file is still the one that was read.

        A run that was in its folder until a moment ago may have written another one.

        Raises:
            ArgumentError: if it is not.
        """
        try:
            same = _written(self.path) == self.written
        except ValueError:
            same = False
        if not same:
            problem = "has been replaced since it was read, by a run in the same folder; try again."
            raise ArgumentError("resume", str(self.path), problem)

    def check_fits(self, expected: Mapping[str, Any]) -> None:
        """Compare it with the metadata of the run that is to continue it.

        Raises:
            ValueError: for another environment, another option that must be kept, or another shape
                of a network, naming the difference.
        """
        found = self.state["metadata"]
        for flag, ours in expected["options"].items():
            theirs = found["options"].get(flag)
            if theirs != ours:
                raise ValueError(
                    f"--resume {self.path} was trained with {flag} {theirs}, which cannot change "
                    f"to {ours}.{self._other_version()}"
                )
        self._check_shapes(found["shapes"], expected["shapes"])

    def _check_shapes(self, theirs: Mapping[str, list[int]], ours: Mapping[str, list[int]]) -> None:
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"--resume {self.path} has other networks: {name} is "
                    f"{theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} here."
                    f"{self._other_version()}"
                )

    def _other_version(self) -> str:
        """A sentence on the library that wrote it, if that was another version."""
        if self.version in (__version__, "not installed"):
            return ""
        return f" It was written by diffpolicy {self.version}, and this is {__version__}."


def _written(path: Path) -> int:
    """When a file was written; ValueError if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def _complete(tensors: dict[str, Tensor], shapes: dict[str, list[int]]) -> None:
    """Add what checkpoints did not hold when denoising processes had no noise scale: that of 1."""
    for name in [name for name in tensors if name.endswith(".process.raw_friction")]:
        scale = f"{name.rpartition('.')[0]}.noise_scale"
        tensors.setdefault(scale, torch.ones((), dtype=tensors[name].dtype))
        if name in shapes:
            shapes.setdefault(scale, [])
