"""MaxEntDP: maximum-entropy diffusion policy by Q-weighted noise estimation."""

from typing import Any

from torch import nn

from objectives.q_critic import QNetworks
from objectives.regression import (
    DenoisingLogProb,
    DenoisingRegressionLoss,
    Evenly,
    PosteriorTarget,
    ReplayedActions,
)
from objectives.temperature import Temperature


class MaxEntDPLoss(DenoisingRegressionLoss):
    """Maximum-entropy reinforcement learning with a diffusion policy (arXiv 2502.11612).

    The network is fitted to the noise that latents would have, if actions had the density ``exp(Q /
    T)``, at noised actions of the replay buffer, and the values count the policy's entropy::

        L_Q  = sum_j (Q_j(s, a) - y)^2
        y    = r + gamma (1 - terminated) (min_j Q_j(s', a') - T log pi(a' | s'))
        L_pi = |eps_hat(x_n, n, s) - sum_k w_k eps_k|^2 / A,   w_k = softmax_k(Q(s, a_k) / T)

    The noises ``eps_k`` and the actions ``a_k`` that they come from could have made the latent (see
    :class:`~objectives.regression.PosteriorTarget`), and the log-density is that of
    :class:`~objectives.regression.DenoisingLogProb`.

    Args:
        actor_network: see :class:`~objectives.regression.DenoisingRegressionLoss`, as for all
            other arguments, outputs and errors.
        qvalue_network: likewise.
        temperature: T, a number above 0; published: .01 to .2 by task, for raw rewards.
        num_noises: K; published: 500.
        density_noises: of each step in the log-density; published: 50.
        **options: the others, but for the parts.

    Raises:
        ValueError: for arguments outside their range.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        temperature: float | Temperature,
        num_noises: int = 500,
        density_noises: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            proposal=ReplayedActions(),
            weight=Evenly(),
            target=PosteriorTarget(num_noises),
            log_prob=DenoisingLogProb(density_noises),
            temperature=temperature,
            **options,
        )
