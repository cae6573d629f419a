"""The fixed atoms of a categorical (C51) value distribution."""

import torch
from torch import Tensor, nn

from diffpolicy.networks.precision import at_least_float32


class CategoricalSupport(nn.Module):
    """Evenly spaced atoms ``z_1 .. z_K`` of a categorical value distribution (arXiv 1707.06887).

    The range is a buffer: checkpoints hold it, and :meth:`set_range` may change it in place.

    Args:
        minimum: lowest atom.
        maximum: highest atom.
        atoms: number of atoms ``K``.

    Raises:
        ValueError: if the range is empty or not finite, or ``atoms < 2``.

    Examples:
        >>> CategoricalSupport(-1.0, 1.0, 3).atoms
        tensor([-1.,  0.,  1.])
    """

    atoms: Tensor

    def __init__(self, minimum: float = -200.0, maximum: float = 200.0, atoms: int = 101) -> None:
        super().__init__()
        if atoms < 2:
            raise ValueError(f"atoms must be at least 2, got {atoms}.")
        self.register_buffer("atoms", torch.zeros(atoms))
        self.set_range(minimum, maximum)

    @property
    def bins(self) -> int:
        """Number of atoms ``K``."""
        return self.atoms.shape[0]

    @torch.no_grad()
    def set_range(self, minimum: float, maximum: float) -> None:
        """Move the atoms to another range, in place.

        What the network predicts is then read on the new atoms; do it before training.

        Raises:
            ValueError: if the range is empty or not finite.
        """
        if not -float("inf") < minimum < maximum < float("inf"):
            raise ValueError(
                f"minimum must be below maximum and both finite, got {minimum} and {maximum}."
            )
        self.atoms.copy_(torch.linspace(minimum, maximum, self.bins, dtype=torch.float64))

    def mean(self, logits: Tensor) -> Tensor:
        """Expected value ``[*B, 1]`` of logits ``[*B, K]``, at least in float32."""
        with torch.autocast(logits.device.type, enabled=False):
            return (at_least_float32(logits).softmax(-1) @ self.atoms).unsqueeze(-1)
