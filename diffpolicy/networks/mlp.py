"""The multilayer perceptron that score networks and critics share."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(
    in_features: int,
    hidden_sizes: Sequence[int],
    out_features: int,
    activation: type[nn.Module] = nn.GELU,
) -> nn.Sequential:
    """Linear layers with an activation after each but the last.

    Args:
        in_features: input width.
        hidden_sizes: widths of the hidden layers; may be empty.
        out_features: output width.
        activation: class of the activation, built without arguments.

    Raises:
        ValueError: if a width is not positive.
    """
    widths = [in_features, *hidden_sizes, out_features]
    if min(widths) < 1:
        raise ValueError(f"every layer width must be at least 1, got {widths}.")
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
