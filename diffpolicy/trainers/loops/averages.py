"""Averages of what updates report, summed where they are computed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffpolicy.trainers.loops.ranks import reduce


class Averages:
    """Means of scalars over updates, and over the ranks.

    Nothing waits for a device until they are read.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def clear(self) -> None:
        """Start new ones."""
        self._totals.clear()
        self._counts.clear()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count the scalars among what one update reports, tensors with one element."""
        for name, value in values.items():
            if value.numel() != 1:
                continue
            # A new tensor each time: the next update of a CUDA graph overwrites the value.
            self._totals[name] = self._totals.get(name, 0.0) + value.detach().reshape(())
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means; every rank calls it, and has counted the same scalars equally often."""
        if not self._totals:
            return {}
        means = [self._totals[name] / count for name, count in self._counts.items()]
        values = reduce(torch.stack([mean.double() for mean in means]), average=True)
        return dict(zip(self._counts, values.tolist(), strict=True))
