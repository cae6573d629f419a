"""The running standard deviation that Gaussian critics predict."""

import torch
from torch import Tensor, nn

from diffpolicy.errors import ArgumentError
from diffpolicy.networks.ranks import sum_over_ranks


class ValueSpread(nn.Module):
    """Running mean of the standard deviations of Gaussian critics, over rows, critics and ranks.

    In training mode every call moves it, the first one to the mean of its batch; in evaluation
    mode it stays, and before any training call the mean of the batch takes its place. It is a
    buffer, the same on all ranks.

    Args:
        rate: share of a batch in the running mean, above 0 and at most 1.

    Raises:
        ArgumentError: for another ``rate``.
    """

    value: Tensor

    def __init__(self, rate: float = 0.005) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise ArgumentError("spread_rate", rate, "must be above 0 and at most 1.")
        self.rate = rate
        # Standard deviations are positive: zero is none yet.
        self.register_buffer("value", torch.zeros(()))

    @torch.no_grad()
    def forward(self, std: Tensor, valid: Tensor | None = None) -> Tensor:
        """The running mean, a scalar; every rank must call it.

        Args:
            std: of the critics ``[*B, E, 1]``.
            valid: boolean ``[*B, 1]``, which rows count; None counts all.
        """
        each = std.mean(-2)
        count = torch.ones_like(each) if valid is None else valid.to(each)
        sums = torch.stack((torch.where(count > 0, each, 0.0).sum(), count.sum()))
        total, number = sum_over_ranks(sums).unbind()
        mean = total / number.clamp_min(1)
        if not self.training:
            return torch.where(self.value > 0, self.value, mean)
        self.value.copy_(torch.where(self.value > 0, self.value.lerp(mean, self.rate), mean))
        return self.value.clone()
