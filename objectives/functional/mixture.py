"""Gaussian mixtures of samples, and their entropy.

Paper letters: w weights, m means, C covariances, r shares of the components in a sample, K their
number, M the number of samples.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


class GaussianMixture(NamedTuple):
    """A mixture of ``K`` Gaussians that was fitted to ``M`` samples of each row.

    Attributes:
        weight: w ``[*B, K]``; sums to one.
        mean: m ``[*B, K, A]``.
        covariance: C ``[*B, K, A, A]``.
        share: r ``[*B, M, K]``, probability of each component given the sample.
    """

    weight: Tensor
    mean: Tensor
    covariance: Tensor
    share: Tensor


def fit_gaussian_mixture(
    samples: Tensor, components: int = 3, *, iterations: int = 10, floor: float = 1e-6
) -> GaussianMixture:
    """Fit mixtures with full covariances to samples by expectation maximisation, in one batch.

    The components start as groups of the samples that are nearest to one of ``K`` far ones: the
    farthest from the mean, the farthest from that, and so on. The same samples give the same
    mixture. Computed in double precision.

    Args:
        samples: ``[*B, M, A]``, without gradient.
        components: K.
        iterations: of expectation maximisation.
        floor: added to the variances, so that equal samples have a density.

    Raises:
        ValueError: for fewer samples than components, or numbers below 1.
    """
    if components < 1 or iterations < 1:
        raise ValueError(
            f"components and iterations must be at least 1, got {components} and {iterations}."
        )
    if samples.ndim < 2 or samples.shape[-2] < components:
        raise ValueError(
            f"samples must be [*B, M, A] with M at least {components}, the number of components, "
            f"got {list(samples.shape)}."
        )
    samples = samples.detach().double()
    share = _nearest(samples, _far_samples(samples, components))
    for _ in range(iterations):
        weight, mean, covariance = _components(samples, share, floor)
        share = _shares(samples, weight, mean, covariance)
    return GaussianMixture(weight, mean, covariance, share)


def mixture_entropy(mixture: GaussianMixture) -> Tensor:
    """The entropy of a fitted mixture in nats, ``[*B, 1]``.

    From the samples that it was fitted to::

        H = -sum_k w_k log w_k + sum_k w_k (A (1 + log 2 pi) + log det C_k) / 2
            + mean_i sum_k r_ik log r_ik

    The first line is the entropy of components that do not overlap, which is published (DACER,
    arXiv 2405.15177); for one Gaussian that three components share it is up to ``log 3`` too large.
    The second line takes off what the components have in common.
    """
    weight, _, covariance, share = mixture
    size = covariance.shape[-1]
    log_det = 2 * _diagonal(_factor(covariance)).log().sum(-1)
    each = (size * (1 + _LOG_2PI) + log_det) / 2
    apart = (weight * each - torch.xlogy(weight, weight)).sum(-1, keepdim=True)
    common = torch.xlogy(share, share).sum(-1).mean(-1, keepdim=True)
    return apart + common


def _far_samples(samples: Tensor, number: int) -> Tensor:
    """Samples ``[*B, K, A]`` that are far from each other."""
    distance = (samples - samples.mean(-2, keepdim=True)).square().sum(-1)
    found: list[Tensor] = []
    for _ in range(number):
        place = distance.argmax(-1)[..., None, None]
        far = samples.take_along_dim(place, -2)
        to_far = (samples - far).square().sum(-1)
        distance = to_far if not found else torch.minimum(distance, to_far)
        found.append(far)
    return torch.cat(found, -2)


def _nearest(samples: Tensor, centers: Tensor) -> Tensor:
    """Whole shares ``[*B, M, K]`` of the nearest centre."""
    distance = (samples.unsqueeze(-2) - centers.unsqueeze(-3)).square().sum(-1)
    nearest = torch.nn.functional.one_hot(distance.argmin(-1), centers.shape[-2])
    return nearest.to(samples)


def _components(samples: Tensor, share: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of samples with given shares."""
    # A component that nothing is left of keeps a number that can be divided by.
    count = share.sum(-2).clamp_min(torch.finfo(share.dtype).tiny)
    mean = (share.transpose(-1, -2) @ samples) / count.unsqueeze(-1)
    residual = samples.unsqueeze(-3) - mean.unsqueeze(-2)
    weighted = share.transpose(-1, -2).unsqueeze(-1) * residual
    covariance = residual.transpose(-1, -2) @ weighted / count[..., None, None]
    unit = torch.eye(samples.shape[-1], dtype=samples.dtype, device=samples.device)
    return count / samples.shape[-2], mean, covariance + floor * unit


def _shares(samples: Tensor, weight: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Probabilities ``[*B, M, K]`` of the components given the samples."""
    factor = _factor(covariance)
    residual = samples.unsqueeze(-3) - mean.unsqueeze(-2)
    white = torch.linalg.solve_triangular(factor, residual.transpose(-1, -2), upper=False)
    log_density = -white.square().sum(-2) / 2 - _diagonal(factor).log().sum(-1, keepdim=True)
    return (log_density + weight.log().unsqueeze(-1)).softmax(-2).transpose(-1, -2)


def _factor(covariance: Tensor) -> Tensor:
    """The Cholesky factor; NaN where there is none, as for samples that are not finite."""
    factor, fault = torch.linalg.cholesky_ex(covariance)
    return torch.where(fault[..., None, None] == 0, factor, math.nan)


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)
