"""QSM: Q-score matching, a regression of the score on the gradient of the critic."""

from typing import Any

from torch import nn

from objectives.q_critic import QNetworks
from objectives.regression import (
    DenoisingRegressionLoss,
    Evenly,
    ReplayedActions,
    ValueGradientTarget,
)
from objectives.temperature import Temperature


class QSMLoss(DenoisingRegressionLoss):
    """Q-score matching (arXiv 2312.11752) under the process of the actor.

    The policy that maximises value plus entropy is ``exp(Q(s, a) / T)``, whose score is the
    gradient of the critic. The network is regressed on it at noised actions of the replay buffer::

        L_Q  = sum_j (Q_j(s, a) - y)^2,   y = r + gamma (1 - terminated) min_j Q_j(s', a')
        L_pi = |f(x_n, n, s) - stopgrad(output_for_score(x_n, g))|^2 / A
        g    = mean_j grad_x Q_j(s, squash(x_n)) / T + grad_x log |d squash(x_n)|
        L_T  = T stopgrad(H - H_target)

    ``x_n`` is the action of the buffer noised to a random step n, ``a'`` an action of the policy,
    ``f`` the network and ``output_for_score`` what it says where the noised density has the score
    g. The gradient of the critic stands for that score, as published: exact at the end of the
    chain, too sharp before it.

    Args:
        actor_network: see :class:`~objectives.regression.DenoisingRegressionLoss`, as for all
            other arguments, outputs and errors.
        qvalue_network: likewise.
        temperature: a number above 0, or a Temperature. Published: fixed, 1/50 for rewards of the
            DeepMind Control Suite (1/120 on two tasks).
        measure_entropy: whether to report the entropy of the policy.
        **options: the others, but for the parts.

    Raises:
        ValueError: for a temperature of 0.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        temperature: float | Temperature,
        measure_entropy: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            proposal=ReplayedActions(),
            weight=Evenly(),
            target=ValueGradientTarget(),
            temperature=temperature,
            measure_entropy=measure_entropy,
            **options,
        )
