"""The multilayer perceptron that score networks and critics share."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Initialization = Literal["torch", "lecun"]
Activation = Literal["gelu", "gelu_tanh", "mish"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "mish": nn.Mish,
}
"""``"gelu"`` is ``x Phi(x)``, torch's default. ``"gelu_tanh"`` is the approximation
``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``, the default of JAX, with which the published
networks were trained. They differ by less than 5e-4, and the first is faster in eager CPU code.
``"mish"`` is ``x tanh(softplus(x))``, of the published networks that predict noise.
"""


def mlp(
    in_features: int,
    hidden_sizes: Sequence[int],
    out_features: int,
    activation: Activation | Callable[[], nn.Module] = "gelu",
    initialization: Initialization = "torch",
) -> nn.Sequential:
    """Linear layers with an activation after each but the last.

    Args:
        in_features: input width.
        hidden_sizes: widths of the hidden layers; may be empty.
        out_features: output width.
        activation: a name of :data:`ACTIVATIONS`, or what makes an activation module when it is
            called without arguments.
        initialization: ``"torch"`` starts layers as ``nn.Linear`` does, ``"lecun"`` with truncated
            LeCun normal weights and zero biases.

    Raises:
        ValueError: if a width is not positive, or for an unknown activation or initialization.
    """
    widths = [in_features, *hidden_sizes, out_features]
    if min(widths) < 1:
        raise ValueError(f"every layer width must be at least 1, got {widths}.")
    if initialization not in ("torch", "lecun"):
        raise ValueError(f"initialization must be 'torch' or 'lecun', got {initialization!r}.")
    make_activation = _activation(activation)
    linear = nn.Linear if initialization == "torch" else LecunLinear
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [linear(before, after), make_activation()]
    return nn.Sequential(*layers, linear(widths[-2], widths[-1]))


def _activation(activation: Activation | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    if not isinstance(activation, str):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {sorted(ACTIVATIONS)} or a callable, got {activation!r}."
        )
    return ACTIVATIONS[activation]


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
