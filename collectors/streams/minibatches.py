"""Minibatches of on-policy rows."""

from collections.abc import Iterator

import torch
from tensordict import TensorDictBase
from torchrl.data import ReplayBuffer, SamplerWithoutReplacement, TensorStorage


class RolloutBuffer:
    """Shuffled minibatches over the rows of one rollout, a fixed number of them.

    TorchRL's ``ReplayBuffer`` with ``SamplerWithoutReplacement``: in an epoch no row comes twice,
    and the rows that do not fill a last minibatch are left out (others in each epoch), so that
    every rank makes the same number of optimiser steps.

    Args:
        rows: number of rows in a rollout.
        minibatch_size: rows in a minibatch, at most ``rows``.
        epochs: passes over the rows.
        seed: seeds the shuffling, which does not touch the global random state.
        device: where the rows are kept.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from tensordict import TensorDict
        >>> buffer = RolloutBuffer(rows=5, minibatch_size=2, epochs=3, seed=0)
        >>> rows = TensorDict({"x": torch.arange(5)}, [5])
        >>> len(buffer), [len(batch) for batch in buffer.minibatches(rows)]
        (6, [2, 2, 2, 2, 2, 2])
    """

    def __init__(
        self,
        rows: int,
        *,
        minibatch_size: int,
        epochs: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in {
            "rows": rows,
            "minibatch_size": minibatch_size,
            "epochs": epochs,
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value}.")
        if minibatch_size > rows:
            raise ValueError(
                f"minibatch_size must be at most the number of rows in a rollout, {rows}, got "
                f"{minibatch_size}; use a smaller minibatch_size or collect more frames."
            )
        self.rows = rows
        self.minibatch_size = minibatch_size
        self.epochs = epochs
        self._device = torch.device(device)
        # TorchRL's sampler draws where the rows are.
        self._generator = torch.Generator(self._device).manual_seed(seed)

    @property
    def minibatches_per_epoch(self) -> int:
        """Number of minibatches in one pass over the rows."""
        return self.rows // self.minibatch_size

    def __len__(self) -> int:
        """Number of minibatches in all epochs."""
        return self.epochs * self.minibatches_per_epoch

    def minibatches(self, rows: TensorDictBase) -> Iterator[TensorDictBase]:
        """Yield ``len(self)`` minibatches ``[minibatch_size]`` of the rows ``[rows]``.

        Raises:
            ValueError: ``rows`` has another shape than ``[rows]``.
        """
        if tuple(rows.shape) != (self.rows,):
            raise ValueError(
                f"rows must be a flat batch of {self.rows} rows, got the shape "
                f"{tuple(rows.shape)}; flatten it with reshape(-1), and give the buffer the number "
                "of rows that a rollout has."
            )
        # Built around the rows: nothing is copied, and no shuffling is left over from before.
        buffer = ReplayBuffer(
            storage=TensorStorage(rows.to(self._device), device="auto"),
            sampler=SamplerWithoutReplacement(drop_last=True),
            batch_size=self.minibatch_size,
            generator=self._generator,
        )
        for _ in range(len(self)):
            yield buffer.sample()

    def get_rng_state(self) -> torch.Tensor:
        """State of the shuffling."""
        return self._generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Continue the shuffling from a saved state."""
        self._generator.set_state(state)
