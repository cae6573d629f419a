"""Running statistics that standardise inputs of networks."""

import torch
from torch import Tensor, nn

from diffpolicy.networks.ranks import sum_over_ranks


class RunningNorm(nn.Module):
    """Standardises features with running statistics that only :meth:`update` changes.

    The forward pass never updates, so acting, evaluating and every minibatch of an update see the
    same statistics, and the log-probabilities stored in a rollout stay valid during training on it.
    Call :meth:`update` once per rollout, after training on it. One instance may be shared by
    several networks. The statistics are buffers: they are checkpointed and move with the module.

    Args:
        num_features: size ``F`` of the last dimension.
        clip: standardised values are clipped to ``[-clip, clip]``.
        eps: added to the variance.

    Examples:
        >>> norm = RunningNorm(1)
        >>> norm(torch.tensor([3.0]))  # no data yet: the identity
        tensor([3.])
        >>> norm.update(torch.tensor([[2.0], [4.0]]))
        >>> norm(torch.tensor([3.0]))
        tensor([0.])
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, num_features: int, *, clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}.")
        self.clip = clip
        self.eps = eps
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(num_features, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(num_features, dtype=torch.float64))

    def forward(self, value: Tensor) -> Tensor:
        """Standardise ``[*B, F]`` with the current statistics."""
        scale = (self.variance + self.eps).rsqrt().to(value.dtype)
        return ((value - self.mean.to(value.dtype)) * scale).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Merge a batch ``[*B, F]`` into the statistics, over all ranks if distributed.

        Raises:
            ValueError: if the feature size differs, or the batch is empty or has values that are
                not finite.
        """
        features = self.mean.shape[0]
        if batch.shape[-1] != features:
            raise ValueError(
                f"batch must have {features} features, got shape {tuple(batch.shape)}."
            )
        flat = batch.detach().reshape(-1, features).to(self.mean)
        if flat.shape[0] == 0:
            raise ValueError(f"batch must not be empty, got shape {tuple(batch.shape)}.")
        if not bool(flat.isfinite().all()):
            raise ValueError("batch must be finite, got NaN or infinite values.")
        # Squares are taken around the batch's own mean, which keeps them accurate far from zero.
        sums = sum_over_ranks(torch.cat((flat.new_tensor([flat.shape[0]]), flat.sum(0))))
        number, batch_mean = sums[0], sums[1:] / sums[0]
        squares = sum_over_ranks((flat - batch_mean).square().sum(0))
        merged = self.count + number
        shift = batch_mean - self.mean
        between = shift.square() * (self.count / merged) * number
        self.variance.copy_((self.count * self.variance + squares + between) / merged)
        self.mean.add_(shift * (number / merged))
        self.count.copy_(merged)
