"""The score network of the denoising kernel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from diffpolicy.networks.embeddings import IntervalEmbedding, StepEmbedding
from diffpolicy.networks.mlp import Activation, Initialization, mlp
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
            activation and initialization given here. With an :class:`IntervalEmbedding` the network
            reads times ``[*B, 2]`` as steps.
        latent_scale: the latent enters divided by this number, for example the prior std.
        clip: the score is clipped to ``[-clip, clip]``.
        init_std: std of the initial weights of the last layer; with ``initialization="lecun"``
            the value of every one of them.
        activation: of the hidden layers, see :func:`~diffpolicy.networks.mlp`.
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
        embedding: StepEmbedding | IntervalEmbedding | None = None,
        latent_scale: float = 1.0,
        clip: float = 1e4,
        init_std: float = 1e-8,
        activation: Activation | Callable[[], nn.Module] = "gelu",
        initialization: Initialization = "torch",
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.embedding = embedding or StepEmbedding(
            denoising_steps, activation=activation, initialization=initialization
        )
        self.latent_scale = latent_scale
        self.clip = clip
        self._widths = (action_dim, observation_dim, self.embedding.out_features)
        self.net = mlp(sum(self._widths), hidden_sizes, action_dim, activation, initialization)
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
            step: integer tensor ``[*B]``, or what else its embedding reads.
            observation: ``[*B, S]``.

        Returns:
            ``[*B, A]``.
        """
        parts = (latent / self.latent_scale, self._standardise(observation), self.embedding(step))
        return self._clipped(self.net(torch.cat(parts, -1)))

    def condition(self, observation: Tensor) -> Callable[[Tensor, int | Tensor], Tensor]:
        """The score for a fixed observation ``[*B, S]``, a function of ``(latent [*B, A], n)``.

        The first layer is linear in its concatenated input, so the parts of observation and step
        are computed here, once for all steps.
        """
        first, *others = self.net
        assert isinstance(first, nn.Linear)
        of_latent, of_observation, of_step = first.weight.split(self._widths, -1)
        of_latent = of_latent / self.latent_scale
        from_observation = _linear(self._standardise(observation), of_observation, first.bias)
        from_step = self.embedding.projected(of_step)

        def score(latent: Tensor, step: int | Tensor) -> Tensor:
            if latent.shape[:-1] != observation.shape[:-1]:
                raise ValueError(
                    f"latent must have the batch shape of the observation, "
                    f"{tuple(observation.shape[:-1])}, got {tuple(latent.shape[:-1])}."
                )
            hidden = _linear(latent, of_latent, from_step(step)) + from_observation
            for layer in others:
                hidden = layer(hidden)
            return self._clipped(hidden)

        return score

    def _standardise(self, observation: Tensor) -> Tensor:
        return observation if self.normalizer is None else self.normalizer(observation)

    def _clipped(self, score: Tensor) -> Tensor:
        return score.clamp(-self.clip, self.clip)


def _linear(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer whose input takes on a wider type of its weight, as in a concatenation."""
    return linear(value.to(torch.promote_types(value.dtype, weight.dtype)), weight, bias)
