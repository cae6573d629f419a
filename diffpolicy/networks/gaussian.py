"""The head of a critic that predicts a normal distribution of returns."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import softplus

from diffpolicy.networks.precision import at_least_float32


class GaussianHead(nn.Module):
    """Reads the outputs of a critic as the mean and the standard deviation of the return.

    The standard deviation is the softplus of the second output (arXiv 2310.05858). The head has no
    parameters; what is read from it is in float32 at least.

    Examples:
        >>> import torch
        >>> head = GaussianHead()
        >>> outputs = torch.tensor([[3.0, 0.0]])
        >>> head.mean(outputs), head.std(outputs)
        (tensor([[3.]]), tensor([[0.6931]]))
    """

    #: Number of outputs of a critic, as the other heads call it.
    bins: ClassVar[int] = 2

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected return ``[*B, 1]`` of outputs ``[*B, 2]``."""
        return at_least_float32(outputs)[..., :1]

    def std(self, outputs: Tensor) -> Tensor:
        """Standard deviation of the return ``[*B, 1]``, positive."""
        return softplus(at_least_float32(outputs)[..., 1:])
