"""The score network of the denoising kernel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffpolicy.networks.embeddings import StepEmbedding
from diffpolicy.networks.mlp import Initialization, mlp
from diffpolicy.networks.normalization import RunningNorm


class ScoreNetwork(nn.Module):
    """MLP on latent, observation and step embedding; starts at (almost) zero.

    Any module with the same ``forward(latent, step, observation)`` can take its place. The
    optional method :meth:`condition` lets a network compute what does not depend on the latent
    once per chain.

    Args:
        action_dim: number of action dimensions ``A``.
        observation_dim: size ``S`` of the observation.
        denoising_steps: number of steps it is trained with.
        hidden_sizes: widths of the hidden layers.
        normalizer: statistics that standardise the observation, or None.
        embedding: step embedding; by default :class:`StepEmbedding` with its defaults and the
            activation and initialization given here.
        latent_scale: the latent enters divided by this number, for example the prior std.
        clip: the score is clipped to ``[-clip, clip]``.
        init_std: std of the initial weights of the last layer; with ``initialization="lecun"``
            the value of every one of them.
        activation: makes an activation module, called without arguments.
        initialization: of the linear layers, see :func:`~diffpolicy.networks.mlp`.

    Raises:
        ValueError: if a width is not positive, or for an unknown initialization.
    """

    def __init__(
        self,
        action_dim: int,
        observation_dim: int,
        denoising_steps: int,
        *,
        hidden_sizes: Sequence[int] = (256, 256, 256),
        normalizer: RunningNorm | None = None,
        embedding: StepEmbedding | None = None,
        latent_scale: float = 1.0,
        clip: float = 1e4,
        init_std: float = 1e-8,
        activation: Callable[[], nn.Module] = nn.GELU,
        initialization: Initialization = "torch",
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.embedding = embedding or StepEmbedding(
            denoising_steps, activation=activation, initialization=initialization
        )
        self.latent_scale = latent_scale
        self.clip = clip
        in_features = action_dim + observation_dim + self.embedding.out_features
        self.net = mlp(in_features, hidden_sizes, action_dim, activation, initialization)
        self.initialization = initialization
        self.init_std = init_std
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let the score start at (almost) zero; the other layers reset themselves."""
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        if self.initialization == "lecun":
            nn.init.constant_(last.weight, self.init_std)
        else:
            nn.init.normal_(last.weight, std=self.init_std)
        nn.init.zeros_(last.bias)

    def forward(self, latent: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        """Score at ``x_n``.

        Args:
            latent: ``[*B, A]``.
            step: integer tensor ``[*B]``.
            observation: ``[*B, S]``.

        Returns:
            ``[*B, A]``.
        """
        return self._score(latent, self._standardise(observation), self.embedding(step))

    def condition(self, observation: Tensor) -> Callable[[Tensor, int], Tensor]:
        """The score for a fixed observation ``[*B, S]``, a function of ``(latent [*B, A], n)``."""
        standardised = self._standardise(observation)
        table = self.embedding.table()

        def score(latent: Tensor, step: int) -> Tensor:
            return self._score(latent, standardised, table[step].expand(*latent.shape[:-1], -1))

        return score

    def _standardise(self, observation: Tensor) -> Tensor:
        return observation if self.normalizer is None else self.normalizer(observation)

    def _score(self, latent: Tensor, observation: Tensor, embedding: Tensor) -> Tensor:
        features = torch.cat((latent / self.latent_scale, observation, embedding), -1)
        return self.net(features).clamp(-self.clip, self.clip)
