"""Checkpoints: what is written when, so that a run that ends at any moment can be continued.

A checkpoint is one file, ``frames_NNNNNNNNNN.ckpt``: Lightning's (networks, optimisers), with the
counters of the run and, for each rank, its episodes and generators. Only its last step, a rename,
makes it exist. ``last.ckpt`` is another name of the newest one.

The replay buffers are too large for it. Each rank writes its own into a folder beside it, before
the checkpoint that names that folder; the folder has a name of its own each time, so that no
checkpoint ever finds the buffers of another one. With ``--checkpoint-replay last`` the buffers of
older checkpoints are removed once the new one is complete.

A write that fails (a full disk) costs this checkpoint and nothing else: its parts are removed, the
older checkpoints stay, and the next one that is due is tried as usual.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO

from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.loops.base import RLModule, RunCallback
from diffpolicy.trainers.loops.ranks import gather


class Checkpoints(RunCallback):
    """``checkpoints/last.ckpt`` and one numbered checkpoint every ``--checkpoint-every`` steps.

    There is one from the start, so that a run which fails can always be continued.

    Args:
        output: folder of the run.
        every: environment steps between checkpoints.
        source: the checkpoint that the run goes on from, which Lightning is handed as it was read.
    """

    def __init__(self, output: Path, every: int, source: Checkpoint | None = None) -> None:
        self.folder = output / files.CHECKPOINT_FOLDER
        self.every = every
        self._saved = 0
        self._source = source
        self._io = _AtomicIO(source)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have Lightning write as described above."""
        trainer.strategy.checkpoint_io = self._io

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state before the first step."""
        assert isinstance(pl_module, RLModule)
        self._saved = pl_module.progress.frames
        last = self.folder / files.LAST_CHECKPOINT
        if pl_module.progress.frames == 0:
            self._save(trainer, pl_module, last)
        elif trainer.is_global_zero and not last.exists():
            pl_module.disk.attempt("last.ckpt", lambda: self._take_along(pl_module))

    def _take_along(self, module: RLModule) -> None:
        """Copy the checkpoint of another folder that this run goes on from, and its replay."""
        assert self._source is not None
        source, path = self._source.path, self._path(module)
        # Checkpoints of earlier versions name no replay buffer.
        replay = self._source.state.get("replay")
        if replay is not None and (source.parent / replay).is_dir():
            shutil.copytree(source.parent / replay, self.folder / replay, dirs_exist_ok=True)
        files.write_atomically(path, lambda temporary: shutil.copyfile(source, temporary))
        self._make_last(path)

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        """Save when due or asked to, and at the end of the run."""
        progress = module.progress
        due = progress.frames // self.every > self._saved // self.every
        if not (due or module.checkpointing or progress.finished or module.stopping):
            return
        self._saved = module.progress.frames
        path = self._path(module)
        module.replay_folder = self._save_replay(trainer, module)
        saved = self._save(trainer, module, path)
        if trainer.is_global_zero and saved:
            module.disk.attempt("last.ckpt", lambda: self._commit(module, path))
        elif trainer.is_global_zero and module.replay_folder is not None:
            # It would take up the room that the next checkpoint needs.
            shutil.rmtree(self.folder / module.replay_folder, ignore_errors=True)
        # Nobody writes the next replay buffer while rank zero removes old ones.
        trainer.strategy.barrier("checkpoint")

    def _path(self, module: RLModule) -> Path:
        """The numbered checkpoint of the module's frames."""
        return self.folder / f"{files.numbered_name(module.progress.frames)}.ckpt"

    def _make_last(self, path: Path) -> None:
        """Let ``last.ckpt`` be another name of a checkpoint."""
        last = self.folder / files.LAST_CHECKPOINT
        files.write_atomically(last, lambda temporary: _link(path, temporary))

    def _save(self, trainer: L.Trainer, module: RLModule, path: Path) -> bool:
        """Write one file; every rank takes part, and rank zero knows whether it worked."""
        if trainer.is_global_zero:
            # A logger must not lack rows that a resumed run takes for written.
            for logger in trainer.loggers:
                logger.save()
        self._io.error = None
        trainer.save_checkpoint(path)
        if self._io.error is not None:
            module.disk.report(str(path), str(self._io.error))
        return self._io.error is None

    def _save_replay(self, trainer: L.Trainer, module: RLModule) -> str | None:
        """Write the replay buffers of all ranks and return their folder; None if there are none."""
        if module.config.replay_checkpoints == "never":
            return None
        unique = trainer.strategy.broadcast(uuid.uuid4().hex[:8])
        name = f"{files.numbered_name(module.progress.frames)}-{unique}.replay"
        error = None
        try:
            module.save_replay(self.folder / name)
        except OSError as problem:
            error = str(problem)
        errors = [problem for problem in gather(error) if problem is not None]
        if not errors:
            return name
        if trainer.is_global_zero:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            module.disk.report(f"the replay buffer of {self._path(module).name}", errors[0])
        return None

    def _commit(self, module: RLModule, path: Path) -> None:
        """Let ``last.ckpt`` be the new checkpoint, then remove what nothing refers to."""
        self._make_last(path)
        kept, policy = module.replay_folder, module.config.replay_checkpoints
        for folder in self.folder.glob("*.replay"):
            checkpoint = folder.name.partition("-")[0]
            superseded = kept is not None and (policy == "last" or checkpoint == path.stem)
            orphan = not (self.folder / f"{checkpoint}.ckpt").exists()
            if folder.name != kept and (superseded or orphan):
                shutil.rmtree(folder, ignore_errors=True)


class _AtomicIO(TorchCheckpointIO):
    """Hands over a checkpoint that was read before, and writes atomically.

    Args:
        source: the checkpoint that was read.

    Attributes:
        error: why the latest write has failed. Raising it on rank zero alone would leave the other
            ranks waiting.
    """

    def __init__(self, source: Checkpoint | None) -> None:
        self.error: OSError | None = None
        self._source = source

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A copy of the top level of what was read."""
        assert self._source is not None
        return dict(self._source.content)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the file, or keep the OSError."""
        try:
            files.write_plain(Path(path), checkpoint)
        except OSError as error:
            self.error = error


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
