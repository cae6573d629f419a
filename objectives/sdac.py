"""SDAC: soft diffusion actor-critic."""

from typing import Any

from torch import nn

from objectives.q_critic import QNetworks
from objectives.regression import (
    BestAction,
    DenoisingRegressionLoss,
    OwnActions,
    PosteriorTarget,
)
from objectives.temperature import Temperature


class SDACLoss(DenoisingRegressionLoss):
    """Soft diffusion actor-critic (arXiv 2502.00361): reweighted score matching.

    The network is fitted to the noise that latents would have, if actions had the density ``exp(Q /
    T)``, at latents of the policy's own actions::

        L_Q  = sum_j (Q_j(s, a) - y)^2,   y = r + gamma (1 - terminated) min_j Q_j(s', a')
        L_pi = |eps_hat(x_n, n, s) - sum_k w_k eps_k|^2 / A,   w_k = softmax_k(Q(s, a_k) / T)

    ``x_n`` is the best of ``num_actions`` own actions, noised to a random step n; the noises
    ``eps_k`` and the actions ``a_k`` that they come from could have made it too (see
    :class:`~objectives.regression.PosteriorTarget`, which leaves out noises that lead outside of
    the bounds, where the published code clips). ``a'`` is the best of ``best_of`` own actions. The
    published temperature falls by a schedule that looks at nothing; it is an argument here.

    Args:
        actor_network: see :class:`~objectives.regression.DenoisingRegressionLoss`, as for all
            other arguments, outputs and errors.
        qvalue_network: likewise.
        temperature: T, a number above 0.
        num_actions: own actions, of which the best one is noised; published: 32.
        num_noises: K; published: 64.
        best_of: published: 32.
        spread: std of noise on the own actions in [-1, 1] units; published: .1 times what is called
            temperature there, .5 at first and .1 in the end.
        delay_actor: published: True.
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
        num_actions: int = 32,
        num_noises: int = 64,
        best_of: int = 32,
        spread: float = 0.1,
        delay_actor: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            proposal=OwnActions(num_actions, spread=spread),
            weight=BestAction(),
            target=PosteriorTarget(num_noises),
            temperature=temperature,
            best_of=best_of,
            delay_actor=delay_actor,
            **options,
        )
