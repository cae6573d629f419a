"""Value and Q networks over the denoising MDP, with scalar or HL-Gauss heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from diffpolicy.networks.embeddings import StepEmbedding
from diffpolicy.networks.mlp import mlp
from diffpolicy.networks.normalization import RunningNorm


class HLGauss(nn.Module):
    """Categorical value representation trained against a Gaussian-smoothed target histogram.

    A target ``y`` becomes the probabilities that a Gaussian around ``y`` puts into each bin
    (truncated to the support); the loss is the cross-entropy (arXiv 2403.03950). Targets are
    clipped to the support.

    Args:
        minimum: lower end of the support.
        maximum: upper end of the support.
        bins: number of bins ``K``.
        sigma_ratio: std of the Gaussian in bin widths.

    Raises:
        ValueError: if the support is empty, ``bins < 2`` or ``sigma_ratio <= 0``.
    """

    edges: Tensor

    def __init__(
        self,
        minimum: float = -100.0,
        maximum: float = 200.0,
        bins: int = 151,
        sigma_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        if not minimum < maximum:
            raise ValueError(f"minimum must be below maximum, got {minimum} and {maximum}.")
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}.")
        if sigma_ratio <= 0:
            raise ValueError(f"sigma_ratio must be positive, got {sigma_ratio}.")
        self.sigma = sigma_ratio * (maximum - minimum) / bins
        edges = torch.linspace(minimum, maximum, bins + 1, dtype=torch.get_default_dtype())
        self.register_buffer("edges", edges, persistent=False)

    @property
    def bins(self) -> int:
        """Number of bins ``K``."""
        return self.edges.shape[0] - 1

    def target_probabilities(self, target: Tensor) -> Tensor:
        """Histogram ``[*B, K]`` of a target ``[*B, 1]``; sums to one."""
        clipped = target.clamp(self.edges[0], self.edges[-1])
        cdf = torch.special.ndtr((self.edges - clipped) / self.sigma)
        return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])

    def mean(self, logits: Tensor) -> Tensor:
        """Expected value ``[*B, 1]`` of logits ``[*B, K]``."""
        centers = 0.5 * (self.edges[1:] + self.edges[:-1])
        return (logits.softmax(-1) * centers).sum(-1, keepdim=True)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy ``[*B, 1]`` of logits ``[*B, K]`` against a target ``[*B, 1]``."""
        probabilities = self.target_probabilities(target)
        return -(probabilities * log_softmax(logits, -1)).sum(-1, keepdim=True)

    def outside(self, target: Tensor) -> Tensor:
        """Whether targets lie outside the support and are clipped, boolean like ``target``."""
        return (target < self.edges[0]) | (target > self.edges[-1])


class _Critic(nn.Module):
    """MLP on a concatenation of inputs, with a scalar or a categorical head."""

    def __init__(
        self,
        in_features: int,
        hidden_sizes: Sequence[int],
        normalizer: RunningNorm | None,
        support: HLGauss | None,
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.support = support
        self.net = mlp(in_features, hidden_sizes, 1 if support is None else support.bins)

    def _evaluate(self, observation: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        out = self.net(torch.cat((observation, *others), -1))
        return out if self.support is None else (self.support.mean(out), out)


class DenoisingValueNetwork(_Critic):
    """``V(s, x_n, n)`` of the denoising MDP (arXiv 2512.02019).

    Args:
        observation_dim: size ``S`` of the observation.
        action_dim: number of action dimensions ``A``.
        denoising_steps: number of denoising steps.
        hidden_sizes: widths of the hidden layers.
        normalizer: statistics that standardise the observation, or None.
        support: HL-Gauss head; None makes a scalar head.
        embedding: step embedding; by default :class:`StepEmbedding` with its defaults.
        latent_scale: the latent enters divided by this number; use the prior std.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        denoising_steps: int,
        *,
        hidden_sizes: Sequence[int] = (256, 256, 256),
        normalizer: RunningNorm | None = None,
        support: HLGauss | None = None,
        embedding: StepEmbedding | None = None,
        latent_scale: float = 1.0,
    ) -> None:
        embedding = embedding or StepEmbedding(denoising_steps)
        in_features = observation_dim + action_dim + embedding.out_features
        super().__init__(in_features, hidden_sizes, normalizer, support)
        self.embedding = embedding
        self.latent_scale = latent_scale

    def forward(
        self, observation: Tensor, latent: Tensor, step: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Value of denoising states.

        Args:
            observation: ``[*B, S]``.
            latent: ``x_n`` ``[*B, A]``.
            step: integer ``[*B, 1]``, as in the rows of the denoising MDP.

        Returns:
            ``[*B, 1]``; with a support the value and its logits ``[*B, K]``.
        """
        embedding = self.embedding(step.squeeze(-1))
        return self._evaluate(observation, latent / self.latent_scale, embedding)


class QNetwork(_Critic):
    """``Q(s, a)`` of an action in environment or latent units.

    Args:
        observation_dim: size ``S`` of the observation.
        action_dim: number of action dimensions ``A``.
        hidden_sizes: widths of the hidden layers.
        normalizer: statistics that standardise the observation, or None.
        support: HL-Gauss head; None makes a scalar head.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        hidden_sizes: Sequence[int] = (256, 256),
        normalizer: RunningNorm | None = None,
        support: HLGauss | None = None,
    ) -> None:
        super().__init__(observation_dim + action_dim, hidden_sizes, normalizer, support)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Value ``[*B, 1]``, with a support also its logits ``[*B, K]``."""
        return self._evaluate(observation, action)
