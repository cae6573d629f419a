"""The stream of replayed batches that an off-policy trainer reads: collect, store, sample."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch.utils.data import IterableDataset
from torchrl.collectors import BaseCollector
from torchrl.data import TensorDictReplayBuffer

from collectors.collection.evaluation import EpisodeStats, episode_stats
from collectors.collection.frame_counts import check_whole_rollouts
from collectors.collection.rollouts import (
    CHUNK_LENGTH_KEY,
    RolloutReader,
    check_finite,
    check_order,
    environment_steps,
)
from collectors.state.collector_state import collector_state, load_collector_state
from collectors.streams.replay import give_back


class OffPolicyStream(IterableDataset[TensorDictBase]):
    """Environment steps turned into replayed batches, as an iterable dataset of known length.

    One pass (one Lightning epoch) makes ``frames`` environment steps; with chunks of actions so
    many chunks, whose steps are counted. After each rollout of the collector (build it with
    ``frames_per_batch=num_envs`` for one step of every environment) the rollout is refused if it
    holds NaN or infinite numbers, its rows are stored in the buffer, and as many samples of the
    buffer are yielded as are due: after ``n`` steps of a pass ``floor(n * updates_per_step)`` in
    all. The number of items is fixed, so every rank makes the same number of updates, and the
    length keeps Lightning from fetching an item ahead.

    Read it as :class:`collectors.OnPolicyStream`, with ``DataLoader(stream, batch_size=None,
    num_workers=0, collate_fn=identity, generator=torch.Generator())``.

    Args:
        collector: yields rollouts ``[E, T]``; see :func:`collectors.make_collector`.
        buffer: keeps the rows; see :func:`collectors.make_replay_buffer`. With a prioritised one
            the loss writes the priorities into each batch, and they are handed back to the buffer
            once the batch has been used.
        frames: environment steps in one pass on this rank, a multiple of the collector's
            ``frames_per_batch``.
        updates_per_step: batches for each environment step, for example 2 or 0.25.
        keys: the entries of a row that are stored, for example the ``in_keys`` of a loss; by
            default all of them. The lengths of chunks of actions are always stored.
        on_rollout: called with each rollout ``[E, T]``, once, before its rows are stored.
        write_back: further entries of the stored rows, by the name of the entry that they start
            as. What a loss has made of them in a batch is written back into the buffer once the
            batch has been used.

    Attributes:
        collected: environment steps made on this rank, those of :meth:`warm_up` included.
        updates: batches yielded on this rank.
        episodes: sums over the episodes that ended since the current pass began, or in
            :meth:`warm_up` after it.

    Raises:
        ValueError: an argument is out of range, or ``frames * updates_per_step`` is not a whole
            number. Reading it raises :class:`collectors.NonFiniteError` for a rollout that it
            refuses.
    """

    def __init__(
        self,
        collector: BaseCollector,
        buffer: TensorDictReplayBuffer,
        *,
        frames: int,
        updates_per_step: float,
        keys: Sequence[NestedKey] | None = None,
        on_rollout: Callable[[TensorDictBase], None] | None = None,
        write_back: Mapping[NestedKey, NestedKey] | None = None,
        sample: Callable[[], TensorDictBase] | None = None,
    ) -> None:
        self._frames_per_batch = int(collector.requested_frames_per_batch)
        check_whole_rollouts("frames", frames, self._frames_per_batch)
        self._ratio = _whole_ratio(frames, updates_per_step, self._frames_per_batch)
        if keys is not None and not keys:
            raise ValueError("keys must name at least one entry to store, got none.")
        self.collector = collector
        self.buffer = buffer
        self.frames = frames
        self.on_rollout = on_rollout
        self.sample = buffer.sample if sample is None else sample
        self.write_back = dict(write_back or {})
        self.keys = None if keys is None else list(keys)
        self.collected = 0
        self.updates = 0
        self.episodes = EpisodeStats(0, 0.0, 0)
        self._reader = RolloutReader(collector)
        self._checked_keys: list[NestedKey] | None = None
        self._used: TensorDictBase | None = None

    def __len__(self) -> int:
        """Number of batches in a pass."""
        return int(self.frames * self._ratio)

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Make the environment steps of one pass and yield the batches ``[batch_size]`` due."""
        self.finish_batch()
        self.episodes = EpisodeStats(0, 0.0, 0)
        done = 0
        for frames in range(self._frames_per_batch, self.frames + 1, self._frames_per_batch):
            self._collect()
            due = math.floor(frames * self._ratio)
            for _ in range(due - done):
                batch = self._used = self.sample()
                self.updates += 1
                yield batch
                self.finish_batch()
            done = due

    def warm_up(self, frames: int) -> TensorDictBase:
        """Store ``frames`` environment steps without an update.

        Args:
            frames: a multiple of the collector's ``frames_per_batch``.

        Returns:
            The rows ``[frames]`` that were stored.

        Raises:
            ValueError: ``frames`` is out of range.
            NonFiniteError: a rollout holds NaN or infinite numbers.
        """
        check_whole_rollouts("frames", frames, self._frames_per_batch)
        self.finish_batch()
        rows = [self._collect() for _ in range(frames // self._frames_per_batch)]
        return torch.cat(rows)

    def finish_batch(self) -> None:
        """Hand priorities and changed entries of the latest batch to the buffer, once.

        The stream does so itself when it is asked for the item after a batch. A reader that knows
        the length never asks that after the last item of a pass: then the call comes before the
        next pass. Call this at the end of an epoch to have it happen there. Without priorities and
        ``write_back`` it does nothing.

        Raises:
            KeyError: the loss has not written the priorities into the batch.
        """
        batch, self._used = self._used, None
        if batch is not None:
            give_back(self.buffer, batch, self.write_back)

    def state_dict(self, *, collector: bool = True) -> dict[str, Any]:
        """All that the next passes depend on, apart from the parameters and the buffer.

        Call it between passes. For the buffer there is :func:`collectors.replay_state`.

        Args:
            collector: whether to save the state of the collector. Without it episodes restart.

        Returns:
            Plain data: counters, and the state of the collector.

        Raises:
            UnsupportedStateError: the collector's state cannot be saved; see
                :func:`collectors.collector_state`.
        """
        counters = {"collected": self.collected, "updates": self.updates}
        return counters | ({"collector": collector_state(self.collector)} if collector else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state, in new episodes when it has none of the collector.

        Raises:
            UnsupportedStateError: the state is that of another environment.
        """
        if "collector" in state_dict:
            load_collector_state(self.collector, state_dict["collector"])
        self.collected = state_dict["collected"]
        self.updates = state_dict["updates"]

    def _collect(self) -> TensorDictBase:
        """Collect one rollout, store its rows ``[E * T]`` and return them."""
        rollout = self._reader.read()
        stored = rollout if self.keys is None else rollout.select(*self.keys)
        lengths = rollout.get(CHUNK_LENGTH_KEY, None)
        if lengths is not None:
            stored.set(CHUNK_LENGTH_KEY, lengths)
        if self._checked_keys is None:
            self._checked_keys = check_order(rollout, stored.keys(True, True))
        check_finite(rollout, self._checked_keys)
        if self.on_rollout is not None:
            self.on_rollout(rollout)
        for name, source in self.write_back.items():
            stored.set(name, rollout[source].clone())
        rows = stored.reshape(-1)
        self.buffer.extend(rows.copy())  # extend adds the index to what it is given
        self.collected += environment_steps(rollout)
        self.episodes += episode_stats(rollout)
        return rows


def _whole_ratio(frames: int, updates_per_step: float, frames_per_batch: int) -> Fraction:
    """``updates_per_step`` as the fraction that is meant, such as 1/10 for the number 0.1.

    Raises:
        ValueError: it is out of range, or ``frames`` of it do not make whole updates.
    """
    if not (math.isfinite(updates_per_step) and updates_per_step >= 1e-6):
        raise ValueError(
            "updates_per_step must be a finite number of at least 1e-06, got "
            f"{updates_per_step}; try 1.0."
        )
    ratio = Fraction(updates_per_step).limit_denominator(10**6)
    if (frames * ratio).denominator != 1:
        step = math.lcm(frames_per_batch, ratio.denominator)
        raise ValueError(
            f"frames * updates_per_step must be a whole number, got {frames} * "
            f"{updates_per_step} = {float(frames * ratio):g}; try frames="
            f"{-(-frames // step) * step}."
        )
    return ratio
