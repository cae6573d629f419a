"""Ensembles of Q networks over the denoising MDP."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffpolicy.networks.critics import HLGauss
from diffpolicy.networks.embeddings import StepEmbedding
from diffpolicy.networks.normalization import RunningNorm
from diffpolicy.networks.q_ensemble import Normalization, QEnsemble


class DenoisingQEnsemble(nn.Module):
    """``E`` Q networks ``Q_j(s, x_{n+1}, n)`` of the denoising MDP (arXiv 2512.02019).

    Taking the step to ``x_{n+1}`` is the action of the denoising MDP; where it came from does not
    matter. The last step's next latent is the action before squashing. Latents enter twice: as
    ``tanh(x_{n+1})``, which is what an environment sees of the last one, and divided by
    ``latent_scale``, because the steps before it must know how far away they are.

    Args:
        observation_dim: size ``S`` of the observation.
        action_dim: number of action dimensions ``A``.
        denoising_steps: number of denoising steps ``N``.
        ensemble_size: number of members ``E``.
        hidden_sizes: widths of the hidden layers of each member.
        normalization: ``"batch"``, ``"layer"`` or None, see :class:`QEnsemble`.
        support: HL-Gauss head; None makes a scalar head.
        normalizer: statistics that standardise the observation, or None.
        embedding: step embedding; by default :class:`StepEmbedding` with its defaults.
        latent_scale: see above; use the prior std.
        value_scale: factor on the values of a scalar head, see :class:`QEnsemble`.
        warmup_steps: training forwards of plain batch normalisation.
        eps_in_correction: see :class:`BatchRenorm`.

    Raises:
        ValueError: for arguments outside their range.

    Examples:
        >>> critic = DenoisingQEnsemble(3, 2, 4, hidden_sizes=(8,))
        >>> step = torch.zeros(5, 1, dtype=torch.long)
        >>> critic(torch.randn(5, 3), torch.randn(5, 2), step).shape
        torch.Size([5, 2, 1])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        denoising_steps: int,
        *,
        ensemble_size: int = 2,
        hidden_sizes: Sequence[int] = (256, 256),
        normalization: Normalization | None = None,
        support: HLGauss | None = None,
        normalizer: RunningNorm | None = None,
        embedding: StepEmbedding | None = None,
        latent_scale: float = 1.0,
        value_scale: float = 1.0,
        warmup_steps: int = 100_000,
        eps_in_correction: bool = True,
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.embedding = embedding or StepEmbedding(denoising_steps)
        self.latent_scale = latent_scale
        self.ensemble = QEnsemble(
            observation_dim + self.embedding.out_features,
            2 * action_dim,
            ensemble_size=ensemble_size,
            hidden_sizes=hidden_sizes,
            normalization=normalization,
            support=support,
            value_scale=value_scale,
            warmup_steps=warmup_steps,
            eps_in_correction=eps_in_correction,
        )

    def forward(
        self, observation: Tensor, next_latent: Tensor, step: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Values of steps of the denoising MDP.

        Args:
            observation: ``[*B, S]``.
            next_latent: ``x_{n+1}`` ``[*B, A]``.
            step: ``n``, integer ``[*B, 1]``.

        Returns:
            ``[*B, E, 1]``; with a support also the logits ``[*B, E, K]``.
        """
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        features = torch.cat((observation, self.embedding(step.squeeze(-1))), -1)
        latent = torch.cat((next_latent.tanh(), next_latent / self.latent_scale), -1)
        return self.ensemble(features, latent)
