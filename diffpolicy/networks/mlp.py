"""The multilayer perceptron that score networks and critics share."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Initialization = Literal["torch", "lecun"]


def mlp(
    in_features: int,
    hidden_sizes: Sequence[int],
    out_features: int,
    activation: Callable[[], nn.Module] = nn.GELU,
    initialization: Initialization = "torch",
) -> nn.Sequential:
    """Linear layers with an activation after each but the last.

    Args:
        in_features: input width.
        hidden_sizes: widths of the hidden layers; may be empty.
        out_features: output width.
        activation: makes an activation module, called without arguments.
        initialization: ``"torch"`` starts layers as ``nn.Linear`` does, ``"lecun"`` with truncated
            LeCun normal weights and zero biases.

    Raises:
        ValueError: if a width is not positive, or for an unknown initialization.
    """
    widths = [in_features, *hidden_sizes, out_features]
    if min(widths) < 1:
        raise ValueError(f"every layer width must be at least 1, got {widths}.")
    if initialization not in ("torch", "lecun"):
        raise ValueError(f"initialization must be 'torch' or 'lecun', got {initialization!r}.")
    linear = nn.Linear if initialization == "torch" else LecunLinear
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [linear(before, after), activation()]
    return nn.Sequential(*layers, linear(widths[-2], widths[-1]))


class LecunLinear(nn.Linear):
    """A linear layer that starts with truncated LeCun normal weights and zero biases."""

    def reset_parameters(self) -> None:
        """Draw new weights and set the biases to zero."""
        lecun_normal_(self.weight, self.in_features)
        nn.init.zeros_(self.bias)


def lecun_normal_(weight: Tensor, fan_in: int) -> None:
    """Fill ``weight`` in place from a normal of variance ``1 / fan_in``, truncated at two stds."""
    # The std of a standard normal truncated to [-2, 2].
    std = 1 / math.sqrt(fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
