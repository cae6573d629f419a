"""Batch renormalisation, for one network or for an ensemble with batched parameters."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffpolicy.networks.precision import at_least_float32, is_half
from diffpolicy.networks.ranks import distributed, gather_over_ranks, sum_over_ranks


class BatchRenorm(nn.Module):
    r"""Batch renormalisation (arXiv 1702.03275) with CrossQ's warm-up (arXiv 1902.05605).

    In training mode, with batch mean ``m`` and biased batch variance ``v`` per feature::

        std = sqrt(v + eps),  running_std = sqrt(running_var + eps)
        r   = clip(std / running_std, 1 / r_max, r_max)
        d   = clip((m - running_mean) / running_std, -d_max, d_max)
        y   = (x - m) / std * r + d

    ``r`` and ``d`` carry no gradient and use the running statistics from before this batch. During
    the first ``warmup_steps`` training forwards ``r = 1`` and ``d = 0``, which is plain batch
    normalisation. Every training forward then moves the running statistics by ``1 - momentum``.
    In evaluation mode the running statistics take the place of the batch's. With several ranks the
    batch is that of all ranks together, which must have the same size everywhere.

    Running statistics and the counter of training forwards are buffers, so that checkpoints hold
    them. They are changed in place.

    Inputs of half precision, as under ``torch.autocast``, are normalised in float32 and come back
    in their own type, as in torch's batch normalisation.

    Args:
        num_features: size ``F`` of the last dimension.
        ensemble_size: number ``E`` of members, which come first in the input and have statistics
            of their own; None is a single network.
        eps: added to variances inside the square root.
        eps_in_correction: whether ``r`` and ``d`` see it, too. False leaves it out of both, which
            the published code of DIME does: ``r = clip(sqrt(v) / sqrt(running_var), ...)`` and
            ``d = clip((m - running_mean) / sqrt(running_var), ...)``. Both agree where variances
            are far above ``eps``.
        momentum: share of the old running statistics that stays.
        r_max: bound of the scale correction.
        d_max: bound of the shift correction.
        warmup_steps: training forwards of plain batch normalisation.

    Raises:
        ValueError: for arguments outside their range.

    Examples:
        >>> norm = BatchRenorm(1)
        >>> norm(torch.tensor([[1.0], [3.0]])).detach().round(decimals=2)
        tensor([[-1.],
                [ 1.]])
    """

    running_mean: Tensor
    running_var: Tensor
    steps: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        ensemble_size: int | None = None,
        eps: float = 1e-3,
        eps_in_correction: bool = True,
        momentum: float = 0.99,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 100_000,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}.")
        if ensemble_size is not None and ensemble_size < 1:
            raise ValueError(f"ensemble_size must be at least 1 or None, got {ensemble_size}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}.")
        if r_max < 1 or d_max < 0 or eps <= 0 or warmup_steps < 0:
            raise ValueError(
                "r_max >= 1, d_max >= 0, eps > 0 and warmup_steps >= 0 are needed, got "
                f"r_max={r_max}, d_max={d_max}, eps={eps}, warmup_steps={warmup_steps}."
            )
        self.eps, self.momentum = eps, momentum
        self.eps_in_correction = eps_in_correction
        self.r_max, self.d_max = r_max, d_max
        self.warmup_steps = warmup_steps
        self.ensemble_size = ensemble_size
        shape = (num_features,) if ensemble_size is None else (ensemble_size, num_features)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set scale, shift, statistics and the counter back to their initial values."""
        for ones in (self.weight, self.running_var):
            ones.fill_(1)
        for zeros in (self.bias, self.running_mean, self.steps):
            zeros.fill_(0)

    def forward(self, value: Tensor) -> Tensor:
        """Normalise ``[*B, F]``, or ``[E, *B, F]`` for an ensemble.

        Raises:
            ValueError: if the shape does not fit, or a training batch has no batch dimension.
        """
        self._check(value)
        normalised = self._normalised(at_least_float32(value))
        return normalised.to(value.dtype) if is_half(value) else normalised

    def _normalised(self, value: Tensor) -> Tensor:
        first = 0 if self.ensemble_size is None else 1
        dims = tuple(range(first, value.ndim - 1))
        weight, bias = (self._expand(x, len(dims)) for x in (self.weight, self.bias))
        if self.training:
            centered, mean, var = _moments(value, dims)
            scale, shift = self._correction(mean.detach(), var.detach(), len(dims))
            self._track(mean.detach(), var.detach())
            scale, shift = (var + self.eps).rsqrt() * scale * weight, bias + shift * weight
            return torch.addcmul(shift, centered, scale)
        mean, var = (self._expand(x, len(dims)) for x in (self.running_mean, self.running_var))
        scale = (var + self.eps).rsqrt() * weight
        return torch.addcmul(bias - mean * scale, value, scale)

    def _check(self, value: Tensor) -> None:
        features = self.running_mean.shape[-1]
        leading = [] if self.ensemble_size is None else [self.ensemble_size]
        fits = value.shape[-1:] == (features,) and list(value.shape[: len(leading)]) == leading
        if not fits or value.ndim < len(leading) + 1:
            expected = ", ".join(map(str, [*leading, "*B", features]))
            raise ValueError(f"input must have shape [{expected}], got {tuple(value.shape)}.")
        if self.training and value.ndim == len(leading) + 1:
            raise ValueError(
                f"a training batch needs a batch dimension, got shape {tuple(value.shape)}; "
                "call .eval() to normalise single inputs."
            )

    def _expand(self, statistic: Tensor, dims: int) -> Tensor:
        """A statistic ``[F]`` or ``[E, F]`` with ``dims`` batch dimensions of size one."""
        return statistic.reshape(*statistic.shape[:-1], *([1] * dims), statistic.shape[-1])

    @torch.no_grad()
    def _correction(self, mean: Tensor, var: Tensor, dims: int) -> tuple[Tensor, Tensor]:
        running_mean = self._expand(self.running_mean, dims)
        eps = self.eps if self.eps_in_correction else 0.0
        running_std = (self._expand(self.running_var, dims) + eps).sqrt()
        running_std = running_std.clamp_min(torch.finfo(running_std.dtype).tiny)
        scale = ((var + eps).sqrt() / running_std).clamp(1 / self.r_max, self.r_max)
        shift = ((mean - running_mean) / running_std).clamp(-self.d_max, self.d_max)
        warm = self.steps >= self.warmup_steps
        return torch.where(warm, scale, 1.0), torch.where(warm, shift, 0.0)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            running.lerp_(batch.reshape(running.shape).to(running.dtype), 1 - self.momentum)
        self.steps.add_(1)

    def extra_repr(self) -> str:
        """Sizes and options for ``print(module)``."""
        return (
            f"{self.running_mean.shape[-1]}, ensemble_size={self.ensemble_size}, "
            f"momentum={self.momentum}, warmup_steps={self.warmup_steps}"
        )


def _moments(value: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The values minus their mean, mean and variance over ``dims`` and all ranks."""
    mean = value.mean(dims, keepdim=True)
    centered = value - mean
    var = centered.square().mean(dims, keepdim=True)
    if not distributed():
        return centered, mean, var
    means, variances = _GatherOverRanks.apply(torch.stack((mean, var))).unbind(1)
    mean_of_all = means.mean(0)
    var_of_all = variances.mean(0) + (means - mean_of_all).square().mean(0)
    return centered + (mean - mean_of_all), mean_of_all, var_of_all


class _GatherOverRanks(torch.autograd.Function):
    """The tensors of all ranks, stacked; every rank must take part, in the backward pass, too."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return gather_over_ranks(value)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return sum_over_ranks(grads[0].clone())[dist.get_rank()]
