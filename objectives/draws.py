"""The random numbers of one call of a loss."""

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor


class Draws:
    """Random numbers that were given for a call; None for those that are still to be drawn.

    Args:
        given: a TensorDict whose batch size begins with that of the call's input, or None.
        batch_size: of the input.
        names: entries that the loss reads.

    Raises:
        KeyError: for other entries.
        ValueError: for another batch size.
    """

    def __init__(
        self, given: TensorDictBase | None, batch_size: torch.Size, names: Sequence[str]
    ) -> None:
        self._given = given
        self._dims = len(batch_size)
        if given is None:
            return
        unknown = sorted(set(given.keys()) - set(names))
        if unknown:
            raise KeyError(f"draws has {unknown}; this loss reads {list(names)} (see its draw()).")
        if given.batch_size[: self._dims] != batch_size:
            raise ValueError(
                f"draws must have the batch size {list(batch_size)} of the input, got "
                f"{list(given.batch_size)}."
            )

    def get(self, name: str, leading: int = 0) -> Tensor | None:
        """An entry ``[*B, *L, ...]`` as ``[*L, *B, ...]`` with ``leading`` dimensions L."""
        value = None if self._given is None else self._given.get(name, None)
        if value is None:
            return None
        extra = tuple(range(leading))
        return value.movedim(tuple(self._dims + i for i in extra), extra)
