"""Replay buffers: where off-policy transitions are kept and sampled from."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
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

_DEMONSTRATED = "demonstrated"


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


class MixedReplay:
    """Samples of replay of which a share is of demonstrations, for any loss on replayed rows.

    Each sample has the same number of demonstrated transitions, drawn with replacement like the
    others, which come last; ``demonstrated`` ``[B, 1]`` tells them apart (arXiv 2302.02948 draws
    one half of each). TorchRL's ``ReplayBufferEnsemble`` draws equal parts of its members, or
    members at random. All draws come from the random stream of ``buffer``, so that
    :func:`collectors.replay_state` of it is all that the next samples depend on.

    Args:
        buffer: of :func:`make_replay_buffer`, or any other of TorchRL's with a ``batch_size`` that
            draws uniformly; new transitions go there.
        demonstrations: transitions ``[R]`` with the entries of those in the buffer; they stay as
            they are.
        fraction: share of demonstrations in a sample, rounded to whole transitions.
        complete: adds to sampled demonstrations what only an actor writes, such as
            :class:`~diffpolicy.actors.ActionChains`.

    Raises:
        ArgumentError: for a prioritised buffer, whose weights make up for its own draws only, one
            without ``batch_size``, or a fraction that leaves none of a kind.

    Example:
        >>> from tensordict import TensorDict
        >>> buffer = make_replay_buffer(100, batch_size=8, seed=0)
        >>> index = buffer.extend(TensorDict({"x": torch.zeros(5)}, [5]))
        >>> mixed = MixedReplay(buffer, TensorDict({"x": torch.ones(3)}, [3]), fraction=0.25)
        >>> mixed.sample()["x"]
        tensor([0., 0., 0., 0., 0., 0., 1., 1.])
    """

    def __init__(
        self,
        buffer: TensorDictReplayBuffer,
        demonstrations: TensorDictBase,
        *,
        fraction: float = 0.5,
        complete: Callable[[TensorDictBase], TensorDictBase] | None = None,
    ) -> None:
        size = buffer.batch_size
        if size is None:
            problem = "has no batch_size; build it with one."
            raise ArgumentError("buffer", type(buffer).__name__, problem)
        number = demonstrated_rows(size, fraction)
        if not 0 < number < size:
            problem = f"is {number} of {size} transitions; it must leave some of both kinds."
            raise ArgumentError("fraction", fraction, problem)
        if isinstance(buffer.sampler, PrioritizedSampler):
            problem = "draws by priorities, which do not go with a fixed share of demonstrations."
            raise ArgumentError("buffer", type(buffer).__name__, problem)
        self.buffer = buffer
        self._replayed = size - number
        self._complete = complete
        self._demonstrations = TensorDictReplayBuffer(
            storage=TensorStorage(demonstrations), generator=buffer._rng, batch_size=number
        )

    def sample(self) -> TensorDictBase:
        """The next batch ``[B]``.

        Raises:
            KeyError: the demonstrations lack an entry of the buffer.
        """
        replayed = self.buffer.sample()[: self._replayed]
        shown = self._demonstrations.sample()
        if replayed.device is not None:
            shown = shown.to(replayed.device)
        if self._complete is not None:
            shown = self._complete(shown)
        batch: TensorDictBase = torch.cat((replayed, shown.select(*replayed.keys(True, True))))
        place = torch.arange(len(batch), device=batch.device).unsqueeze(-1)
        return batch.set(_DEMONSTRATED, place >= self._replayed)


def demonstrated_rows(batch_size: int, fraction: float) -> int:
    """How many transitions a share of a batch is."""
    return round(fraction * batch_size)


def give_back(
    buffer: TensorDictReplayBuffer, batch: TensorDictBase, names: Iterable[NestedKey]
) -> None:
    """Hand the priorities and the changed entries of a batch to its buffer, once it has been used.

    Args:
        buffer: of :func:`make_replay_buffer`.
        batch: sampled from it, or by a :class:`MixedReplay` of it, whose demonstrations stay as
            they are.
        names: the entries that have changed.

    Raises:
        KeyError: the loss has not written the priorities into the batch.
    """
    if names:
        shown = batch.get(_DEMONSTRATED, None)
        own = batch if shown is None else batch[~shown.squeeze(-1)]
        overwrite_entries(buffer, own, names)
    if not isinstance(buffer, TensorDictPrioritizedReplayBuffer):
        return
    if batch.get(buffer.priority_key, None) is None:
        raise KeyError(
            f"a batch of the prioritised buffer has been used, but nothing has written "
            f"{buffer.priority_key!r} into it; call the loss on the batch itself, not on "
            "a copy, or build the buffer with the loss's priority_key."
        )
    buffer.update_tensordict_priority(batch)


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
