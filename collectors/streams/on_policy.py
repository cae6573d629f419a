"""The stream of minibatches that a trainer reads: collect, check, prepare, shuffle."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torch.utils.data import IterableDataset
from torchrl.collectors import BaseCollector

from collectors.collection.rollouts import RolloutReader, check_finite, environment_steps
from collectors.state.collector_state import collector_state, load_collector_state
from collectors.streams.minibatches import RolloutBuffer


class OnPolicyStream(IterableDataset[TensorDictBase]):
    """Rollouts turned into minibatches of rows, as an iterable dataset of known length.

    One pass (one Lightning epoch) makes ``rollouts`` times: collect a rollout ``[E, T]``, refuse
    it if it holds NaN or infinite numbers, ``prepare`` it into flat rows, and yield ``epochs``
    times over its minibatches. The number of items is fixed, so every rank makes the same number
    of optimiser steps, and the length keeps Lightning from fetching an item ahead (the next
    rollout would then come from the policy before the last update).

    Read it with ``DataLoader(stream, batch_size=None, num_workers=0, collate_fn=identity,
    generator=torch.Generator())``: the default collate function cannot handle TensorDicts, and
    without a generator the loader draws from the global random state.

    Args:
        collector: yields rollouts ``[E, T]``; see :func:`collectors.make_collector`.
        prepare: takes a rollout and returns its flat rows ``[rows]``, for example estimates
            advantages and calls the loss's ``chain_rows``. Called without gradients.
        rows: number of rows that ``prepare`` returns: environment steps in a rollout, times the
            denoising steps when chains are flattened.
        minibatch_size: rows in a minibatch, at most ``rows``.
        epochs: passes over each rollout.
        rollouts: rollouts in one pass over the stream.
        seed: seeds the shuffling.
        on_rollout_end: called with each rollout after its last minibatch has been used, once, for
            example to update the observation statistics; see :meth:`finish_rollout`.
        device: where the rows are kept.

    Attributes:
        frames: environment steps collected on this rank.
        iteration: rollouts collected on this rank.
        last_rollout: the latest rollout, ``None`` before the first.

    Raises:
        ValueError: an argument is out of range, or ``minibatch_size`` exceeds ``rows``. Reading it
            raises :class:`collectors.NonFiniteError` for a rollout that it refuses.
    """

    def __init__(
        self,
        collector: BaseCollector,
        prepare: Callable[[TensorDictBase], TensorDictBase],
        *,
        rows: int,
        minibatch_size: int,
        epochs: int,
        seed: int,
        rollouts: int = 1,
        on_rollout_end: Callable[[TensorDictBase], None] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if rollouts < 1:
            raise ValueError(f"rollouts must be an integer of at least 1, got {rollouts}.")
        self.buffer = RolloutBuffer(
            rows, minibatch_size=minibatch_size, epochs=epochs, seed=seed, device=device
        )
        self.collector = collector
        self.prepare = prepare
        self.rollouts = rollouts
        self.on_rollout_end = on_rollout_end
        self.frames = 0
        self.iteration = 0
        self.last_rollout: TensorDictBase | None = None
        self._reader = RolloutReader(collector)
        self._stopped = False
        self._unfinished = False

    def __len__(self) -> int:
        """Number of minibatches in a pass, when :meth:`stop_epochs` is not called."""
        return self.rollouts * len(self.buffer)

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Yield the minibatches ``[minibatch_size]`` of the next ``rollouts`` rollouts."""
        for _ in range(self.rollouts):
            yield from self._minibatches(self._collect())
            self.finish_rollout()

    def stop_epochs(self) -> None:
        """Skip the remaining minibatches of the current rollout.

        With several ranks call it on all of them at the same step.
        """
        self._stopped = True

    def finish_rollout(self) -> None:
        """Call ``on_rollout_end`` for the current rollout, unless that has been done.

        The stream does so itself when it is asked for the item after a rollout's last minibatch.
        A reader that knows the length never asks that after the last item of a pass: then the
        call comes before the next rollout is collected. Call this at the end of an epoch to have
        it happen there.
        """
        if self._unfinished and self.last_rollout is not None:
            self._unfinished = False
            if self.on_rollout_end is not None:
                self.on_rollout_end(self.last_rollout)

    def state_dict(self, *, collector: bool = True) -> dict[str, Any]:
        """All that the next passes depend on, apart from the parameters; call it between passes.

        Args:
            collector: whether to save the state of the collector. Without it episodes restart.

        Returns:
            Plain data: counters, the state of the shuffling, and that of the collector.

        Raises:
            UnsupportedStateError: the collector's state cannot be saved; see
                :func:`collectors.collector_state`.
        """
        counters = {"frames": self.frames, "iteration": self.iteration}
        shuffling = {"shuffling": self.buffer.get_rng_state()}
        saved = {"collector": collector_state(self.collector)} if collector else {}
        return counters | shuffling | saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state, in new episodes when it has none of the collector.

        Raises:
            UnsupportedStateError: the state is that of another environment.
        """
        if "collector" in state_dict:
            load_collector_state(self.collector, state_dict["collector"])
        self.frames = state_dict["frames"]
        self.iteration = state_dict["iteration"]
        self.buffer.set_rng_state(state_dict["shuffling"])

    def _collect(self) -> TensorDictBase:
        self.finish_rollout()
        rollout = self._reader.read()
        check_finite(rollout)
        self.frames += environment_steps(rollout)
        self.iteration += 1
        self.last_rollout = rollout
        self._unfinished = True
        self._stopped = False
        return rollout

    def _minibatches(self, rollout: TensorDictBase) -> Iterator[TensorDictBase]:
        with torch.no_grad():
            rows = self.prepare(rollout)
        for batch in self.buffer.minibatches(rows):
            yield batch
            if self._stopped:
                return
