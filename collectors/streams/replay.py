"""Replay buffers: where off-policy transitions are kept and sampled from."""

import math
import shutil
import tempfile
from collections.abc import Iterable
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Literal

import torch
import torchrl
from tensordict import NestedKey, TensorDictBase
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    PrioritizedSampler,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
    TensorStorage,
)

from collectors.seeding import derive_seed
from diffpolicy.errors import ArgumentError


def make_replay_buffer(
    capacity: int,
    *,
    batch_size: int,
    seed: int,
    storage: Literal["memory", "disk"] = "memory",
    scratch_dir: str | Path | None = None,
    prioritized: bool = False,
    alpha: float = 0.6,
    beta: float = 0.4,
    priority_key: NestedKey = "td_error",
    device: torch.device | str = "cpu",
) -> TensorDictReplayBuffer:
    """Build a TorchRL replay buffer of single transitions.

    Rows go in with ``extend`` (``[rows]``), and the oldest make room once ``capacity`` is reached.
    ``sample()`` draws ``[batch_size]`` rows with replacement and adds their ``index``. The draws
    come from a random stream of the buffer's own, so that sampling neither reads nor moves the
    global one; :func:`collectors.replay_state` saves the rows, the priorities and that stream.

    Args:
        capacity: largest number of rows.
        batch_size: rows in a sample.
        seed: non-negative integer; seeds the draws.
        storage: ``"memory"`` keeps the rows in main memory. ``"disk"`` keeps them in memory-mapped
            files: the operating system decides how much of them stays in memory.
        scratch_dir: where the files of ``"disk"`` go. They are yours to delete, and each buffer
            needs a directory of its own. By default a temporary directory, which is removed
            together with the buffer.
        prioritized: draw rows with probability proportional to ``priority ** alpha``
            (Schaul et al., 2016, https://arxiv.org/abs/1511.05952), and add the weights that make
            up for it, ``priority_weight``. New rows get the largest priority so far;
            ``update_tensordict_priority(batch)`` sets them from ``priority_key``.
        alpha: 0 draws uniformly, 1 in proportion to the priorities.
        beta: 0 makes up for none of the bias of prioritised draws, 1 for all of it.
        priority_key: the entry that a loss writes the priorities to.
        device: where the samples are put. The rows themselves stay in main memory or on disk.

    Returns:
        A ``TensorDictReplayBuffer``, or a ``TensorDictPrioritizedReplayBuffer``.

    Raises:
        ValueError: an argument is out of range, ``scratch_dir`` is not empty or not used by the
            storage, or priorities are asked for where TorchRL's extension is missing.

    Example:
        >>> from tensordict import TensorDict
        >>> buffer = make_replay_buffer(100, batch_size=4, seed=0)
        >>> index = buffer.extend(TensorDict({"x": torch.arange(5)}, [5]))
        >>> buffer.sample()["x"].shape
        torch.Size([4])
    """
    for argument, count in {"capacity": capacity, "batch_size": batch_size}.items():
        if count < 1:
            raise ValueError(f"{argument} must be an integer of at least 1, got {count}.")
    for argument, exponent in {"alpha": alpha, "beta": beta}.items():
        if not (math.isfinite(exponent) and exponent >= 0):
            raise ValueError(
                f"{argument} must be a finite number of at least 0, got {exponent}; usual values "
                "are between 0 and 1."
            )
    if prioritized:
        _check_extension()
    options = {
        "generator": torch.Generator().manual_seed(derive_seed(seed)),
        "storage": _make_storage(storage, capacity, scratch_dir),
        "batch_size": batch_size,
        "priority_key": priority_key,
    }
    if prioritized:
        buffer = TensorDictPrioritizedReplayBuffer(alpha=alpha, beta=beta, **options)
    else:
        buffer = TensorDictReplayBuffer(**options)
    if torch.device(device).type != "cpu":
        buffer.append_transform(partial(_to_device, device=torch.device(device)))
    return buffer


def overwrite_entries(
    buffer: TensorDictReplayBuffer, batch: TensorDictBase, names: Iterable[NestedKey]
) -> None:
    """Set entries of the rows that a batch was sampled from to what they are in the batch.

    Args:
        buffer: of :func:`make_replay_buffer`.
        batch: sampled from it, with its ``index``.
        names: the entries.
    """
    # A slice of the storage shares its memory.
    stored, index = buffer.storage[:], batch["index"].cpu()
    for name in names:
        value = stored[name]
        value[index] = batch[name].to(value.device)


def _make_storage(kind: str, capacity: int, scratch_dir: str | Path | None) -> TensorStorage:
    if kind not in ("memory", "disk"):
        raise ValueError(f"storage must be 'memory' or 'disk', got {kind!r}.")
    if kind == "memory":
        if scratch_dir is not None:
            raise ValueError(
                f"scratch_dir={str(scratch_dir)!r} is only used by storage='disk'; leave it out or "
                "ask for storage='disk'."
            )
        return LazyTensorStorage(capacity)
    if scratch_dir is not None:
        return LazyMemmapStorage(capacity, scratch_dir=_empty_directory(Path(scratch_dir)))
    # TorchRL's own default keeps the rows in shared memory, not on disk.
    directory = tempfile.mkdtemp(prefix="replay-buffer-")
    storage = LazyMemmapStorage(capacity, scratch_dir=directory)
    # Unlike weakref.finalize, this also runs when a forked process ends.
    Finalize(storage, shutil.rmtree, (directory,), {"ignore_errors": True}, exitpriority=0)
    return storage


def _empty_directory(directory: Path) -> Path:
    """Return ``directory``, or raise ValueError if rows of another buffer could be in it."""
    if directory.exists() and not (directory.is_dir() and next(directory.iterdir(), None) is None):
        raise ValueError(
            f"scratch_dir={str(directory)!r} exists and is not an empty directory; name a new one "
            "for each buffer, or leave scratch_dir out for a temporary directory."
        )
    return directory


def _check_extension() -> None:
    """Raise ValueError unless TorchRL's compiled priority trees can be used."""
    try:
        PrioritizedSampler(1, alpha=1.0, beta=1.0)
    except RuntimeError as error:
        raise ArgumentError(
            "prioritized",
            True,
            f"needs torchrl's compiled extension, but that of torchrl {torchrl.__version__} does "
            f"not load with torch {torch.__version__}; leave it out, or install a torch that this "
            "torchrl was built for.",
        ) from error


def _to_device(batch: TensorDictBase, device: torch.device) -> TensorDictBase:
    return batch.to(device, non_blocking=True)
