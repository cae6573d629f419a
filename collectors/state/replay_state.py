"""State of a replay buffer: its rows, where it writes next, its priorities, its draws."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import PrioritizedSampler, RandomSampler, TensorDictReplayBuffer, TensorStorage

from collectors.errors import UnsupportedStateError
from collectors.state.object_state import class_name

_CHUNK = 4096  # rows that are copied at once


def replay_state(buffer: TensorDictReplayBuffer) -> dict[str, Any]:
    """Return all that the next draws of a buffer depend on, without a copy of its rows.

    The rows are views of the buffer, only as long as what is in use: save them before the next
    row is stored. ``torch.save`` writes them from where they are, also from a disk.

    Args:
        buffer: from :func:`collectors.make_replay_buffer`.

    Returns:
        Plain data: loadable with ``torch.load(weights_only=True)``, with ``mmap=True`` without
        reading the rows into memory.

    Raises:
        UnsupportedStateError: the buffer has a storage or a sampler of another kind.
    """
    _check_kind(buffer)
    count = len(buffer)
    rows = buffer.storage[:count] if count else TensorDict({}, [0])
    leaves = rows.items(include_nested=True, leaves_only=True)
    return {
        "rows": [[[key] if isinstance(key, str) else list(key), _used(x)] for key, x in leaves],
        "count": count,
        "capacity": buffer.storage.max_size,
        "writer": dict(buffer.writer.state_dict()),
        "priorities": _priorities(buffer, count),
        "generator": buffer._rng.get_state(),
    }


def load_replay_state(buffer: TensorDictReplayBuffer, state: dict[str, Any]) -> None:
    """Let an empty buffer continue where another one was when its state was saved.

    Args:
        buffer: built with the same capacity and the same kind of priorities; memory or disk.
        state: from :func:`replay_state`.

    Raises:
        ValueError: the buffer holds rows, or differs in its capacity or priorities.
        UnsupportedStateError: the buffer has a storage or a sampler of another kind.
    """
    _check_kind(buffer)
    _check_fits(buffer, state)
    count = state["count"]
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        chunk = TensorDict({tuple(path): rows[start:stop] for path, rows in state["rows"]})
        chunk.batch_size = [stop - start]
        buffer.storage.set(range(start, stop), chunk)
    buffer.writer.load_state_dict(state["writer"])
    if state["priorities"] is not None:
        _load_priorities(buffer, state["priorities"])
    buffer._rng.set_state(state["generator"])


def _used(rows: Tensor) -> Tensor:
    """Return ``rows`` ``[n, ...]`` with a storage of their size: torch.save writes all of it."""
    whole = rows.as_subclass(Tensor)
    size = whole.numel() * whole.element_size()
    start = whole.storage_offset() * whole.element_size()
    part = whole.untyped_storage()[start : start + size]
    return torch.empty(0, dtype=whole.dtype).set_(part, 0, whole.shape, whole.stride())


def _check_kind(buffer: TensorDictReplayBuffer) -> None:
    known = isinstance(buffer.sampler, (RandomSampler, PrioritizedSampler))
    for part, supported in (
        (buffer.storage, isinstance(buffer.storage, TensorStorage)),
        (buffer.sampler, known),
    ):
        if not supported:
            raise UnsupportedStateError(
                f"the state of a replay buffer with a {class_name(part)} cannot be saved; build it "
                "with collectors.make_replay_buffer."
            )


def _check_fits(buffer: TensorDictReplayBuffer, state: dict[str, Any]) -> None:
    if len(buffer):
        raise ValueError(f"buffer must be empty, got one of {len(buffer)} rows; build a new one.")
    if buffer.storage.max_size != state["capacity"]:
        raise ValueError(
            f"buffer has the capacity {buffer.storage.max_size}, but the saved one had "
            f"{state['capacity']}; build it with that capacity."
        )
    prioritized = isinstance(buffer.sampler, PrioritizedSampler)
    if prioritized != (state["priorities"] is not None):
        raise ValueError(
            f"buffer has prioritized={prioritized}, but the saved one had {not prioritized}; build "
            f"it with prioritized={not prioritized}."
        )


def _priorities(buffer: TensorDictReplayBuffer, count: int) -> dict[str, Any] | None:
    """Priorities ``[count]`` as TorchRL's trees hold them, and the largest so far."""
    sampler = buffer.sampler
    if not isinstance(sampler, PrioritizedSampler):
        return None
    leaves = sampler._sum_tree[torch.arange(count)] if count else []
    largest, where = sampler._max_priority
    return {
        "leaves": torch.as_tensor(leaves),
        "largest": None if largest is None else torch.as_tensor(largest).clone(),
        "where": None if where is None else torch.as_tensor(where).clone(),
    }


def _load_priorities(buffer: TensorDictReplayBuffer, saved: dict[str, Any]) -> None:
    sampler = buffer.sampler
    sampler._maybe_init_from_storage(buffer.storage)
    index = torch.arange(len(saved["leaves"]))
    if len(index):
        sampler._sum_tree[index] = saved["leaves"]
        sampler._min_tree[index] = saved["leaves"]
    sampler._max_priority = (saved["largest"], saved["where"])
