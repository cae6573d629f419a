"""What a policy remembers of its episodes: the last observations, and the rest of its plans."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collectors.environments.frames import stack_frames
from diffpolicy.errors import ArgumentError
from diffpolicy.policy.interface import Interface
from diffpolicy.policy.observations import Observation, encode


class Memory:
    """Histories of observations and queues of planned actions, one for each row of a batch.

    Rows are those of the flattened batch, ``n`` of them. Without histories and chunks there is
    nothing to remember, and each step may have another batch.

    Args:
        interface: says how many observations are read, and how many actions are planned, at once.

    Attributes:
        interface: see above.
    """

    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self._remembers = interface.frames > 1 or interface.chunk > 1
        self._batch: tuple[int, ...] | None = None

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Forget all, or what belongs to some rows.

        Args:
            rows: booleans of the shape of the batch.

        Raises:
            ArgumentError: if these are not.
        """
        if rows is None or not self._remembers:
            self._batch = None
        if self._batch is None:
            return
        chosen = np.asarray(rows)
        if chosen.dtype != np.bool_ or chosen.shape != self._batch:
            given = f"of the shape {chosen.shape} and type {chosen.dtype}"
            problem = f"must be booleans of the shape {self._batch} of the batch."
            raise ArgumentError("rows", given, problem)
        self._fresh |= chosen.reshape(-1)
        self._left[chosen.reshape(-1)] = 0

    def replan(self) -> None:
        """Forget the rest of all plans, and nothing else."""
        if self._batch is not None:
            self._left[:] = 0

    @property
    def plan(self) -> NDArray[Any] | None:
        """The actions that were planned last, ``[*batch, *chunk_shape]``; None without a plan."""
        if self._batch is None:
            return None
        return self._plan.reshape(*self._batch, *self.interface.chunk_shape).copy()

    def observe(self, observation: Observation) -> list[NDArray[Any]]:
        """Take one more observation, and return what the network reads: ``[n, *shape]`` each.

        Raises:
            ArgumentError: if its batch is not that of the observations before.
        """
        self._check_batch(observation.batch)
        entries, count = self.interface.entries, len(self._left)
        if self.interface.frames == 1:
            rows = zip(entries, observation.rows, strict=True)
            return [row.reshape(count, *entry.shape) for entry, row in rows]
        for index, entry in enumerate(self.interface.observed):
            now = observation.values[index].astype(entry.space.dtype)
            now = now.reshape(count, *now.shape[len(observation.batch) :])
            before = self._frames.get(index, [now] * self.interface.frames)
            # An episode begins with copies of its first observation.
            begins = self._fresh.reshape(-1, *[1] * (now.ndim - 1))
            self._frames[index] = [np.where(begins, now, frame) for frame in (*before[1:], now)]
        self._fresh[:] = False
        histories = map(stack_frames, self.interface.observed, self._frames.values())
        return list(map(encode, entries, histories))

    @property
    def due(self) -> NDArray[np.bool_]:
        """Which rows need a plan, ``[n]``."""
        return self._left == 0

    def keep(self, plan: NDArray[Any]) -> None:
        """Take the plans ``[m, *chunk_shape]`` of the ``m`` rows that are due."""
        due = self.due
        self._plan[due] = plan
        self._left[due] = self.interface.chunk

    def next_action(self) -> NDArray[Any]:
        """Take the next action of each row from its plan: ``[*batch, *shape of the space]``."""
        assert self._batch is not None
        rows = np.arange(len(self._left))
        action: NDArray[Any] = self._plan[rows, self.interface.chunk - self._left]
        self._left -= 1
        return action.reshape(*self._batch, *self.interface.chunk_shape[1:])

    def _check_batch(self, batch: tuple[int, ...]) -> None:
        if self._batch is None or not self._remembers:
            count = math.prod(batch)
            self._batch = batch
            self._fresh = np.ones(count, np.bool_)
            self._left = np.zeros(count, np.int64)
            self._plan = np.zeros(
                (count, *self.interface.chunk_shape), self.interface.actions.space.dtype
            )
            self._frames: dict[int, list[NDArray[Any]]] = {}
        elif batch != self._batch:
            raise ArgumentError(
                "observation",
                f"of the batch shape {batch}",
                f"must have the batch shape {self._batch} of the episodes that this policy "
                "remembers; call policy.reset() when episodes begin.",
            )
