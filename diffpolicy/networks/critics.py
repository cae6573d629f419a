"""The value network of the denoising MDP, and the HL-Gauss head."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from diffpolicy.networks.embeddings import StepEmbedding
from diffpolicy.networks.mlp import mlp
from diffpolicy.networks.normalization import RunningNorm
from diffpolicy.networks.precision import at_least_float32

SupportEnds = Literal["edges", "centers"]


class HLGauss(nn.Module):
    """Categorical value representation trained against a Gaussian-smoothed target histogram.

    A target ``y`` becomes the probabilities that a Gaussian around ``y`` puts into each bin
    (truncated to the support); the loss is the cross-entropy (arXiv 2403.03950). Targets are
    clipped to the support.

    With ``ends="edges"`` the support reaches from the first edge to the last, and the bins have
    the width ``(maximum - minimum) / K``. With ``ends="centers"`` it reaches from the first bin's
    centre to the last one's, ``(maximum - minimum) / (K - 1)`` wide, as in the code released with
    arXiv 2512.02019; values at the ends of the support can then be predicted exactly.

    The edges are a buffer, so that predictions are read on the support they were trained with.
    Everything is computed at least in float32, also under ``torch.autocast``.

    Args:
        minimum: lower end of the support.
        maximum: upper end of the support.
        bins: number of bins ``K``.
        sigma_ratio: std of the Gaussian in bin widths.
        ends: what lies at the ends of the support, see above.

    Raises:
        ValueError: if the support is empty, ``bins < 2``, ``sigma_ratio <= 0``, or for unknown
            ``ends``.
    """

    edges: Tensor

    def __init__(
        self,
        minimum: float = -100.0,
        maximum: float = 200.0,
        bins: int = 151,
        sigma_ratio: float = 0.75,
        ends: SupportEnds = "edges",
    ) -> None:
        super().__init__()
        if not minimum < maximum:
            raise ValueError(f"minimum must be below maximum, got {minimum} and {maximum}.")
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}.")
        if sigma_ratio <= 0:
            raise ValueError(f"sigma_ratio must be positive, got {sigma_ratio}.")
        if ends not in get_args(SupportEnds):
            raise ValueError(f"ends must be one of {get_args(SupportEnds)}, got {ends!r}.")
        width = (maximum - minimum) / (bins if ends == "edges" else bins - 1)
        margin = 0.0 if ends == "edges" else width / 2
        self.ends = ends
        self.sigma_ratio = sigma_ratio
        edges = torch.linspace(
            minimum - margin, maximum + margin, bins + 1, dtype=torch.get_default_dtype()
        )
        self.register_buffer("edges", edges)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the edges if the state does not have them, as states of old do not."""
        state_dict.setdefault(prefix + "edges", self.edges)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def bins(self) -> int:
        """Number of bins ``K``."""
        return self.edges.shape[0] - 1

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of the Gaussian around a target, a scalar."""
        return self.sigma_ratio * (self.edges[-1] - self.edges[0]) / self.bins

    @property
    def centers(self) -> Tensor:
        """Centres of the bins ``[K]``."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the support."""
        at = self.edges if self.ends == "edges" else self.centers
        return at[0], at[-1]

    def target_probabilities(self, target: Tensor) -> Tensor:
        """Histogram ``[*B, K]`` of a target ``[*B, 1]``; sums to one."""
        clipped = at_least_float32(target).clamp(*self.limits)
        cdf = torch.special.ndtr((self.edges - clipped) / self.sigma)
        return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])

    def mean(self, logits: Tensor) -> Tensor:
        """Expected value ``[*B, 1]`` of logits ``[*B, K]``."""
        return (at_least_float32(logits).softmax(-1) * self.centers).sum(-1, keepdim=True)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy ``[*B, 1]`` of logits ``[*B, K]`` against a target ``[*B, 1]``."""
        probabilities = self.target_probabilities(target)
        return -(probabilities * log_softmax(at_least_float32(logits), -1)).sum(-1, keepdim=True)

    def outside(self, target: Tensor) -> Tensor:
        """Whether targets lie outside the support and are clipped, boolean like ``target``."""
        low, high = self.limits
        return (target < low) | (target > high)


class DenoisingValueNetwork(nn.Module):
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
        super().__init__()
        self.normalizer = normalizer
        self.support = support
        self.embedding = embedding or StepEmbedding(denoising_steps)
        self.latent_scale = latent_scale
        in_features = observation_dim + action_dim + self.embedding.out_features
        self.net = mlp(in_features, hidden_sizes, 1 if support is None else support.bins)

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
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        embedding = self.embedding(step.squeeze(-1))
        out = self.net(torch.cat((observation, latent / self.latent_scale, embedding), -1))
        return out if self.support is None else (self.support.mean(out), out)
