"""QVPO: Q-weighted variational policy optimisation."""

from typing import Any

from torch import nn

from objectives.q_critic import QNetworks
from objectives.regression import AdvantageWeight, DenoisingRegressionLoss, NoiseTarget, OwnActions


class QVPOLoss(DenoisingRegressionLoss):
    """Q-weighted variational policy optimisation (arXiv 2405.16173).

    The policy is fitted to the best of its own actions, weighed by how much better it is than the
    others, and to uniform actions. With K own actions ``a_k`` of the state::

        L_Q  = sum_j (Q_j(s, a) - y)^2,   y = r + gamma (1 - terminated) min_j Q_j(s', a')
        L_pi = mean_m w_m |eps_hat(x_n, n, s) - eps|^2 / A
        w_0  = relu(max_k Q(s, a_k) - mean_k Q(s, a_k)),   w_m = uniform_weight w_0

    ``x_n`` is the best own action (m = 0) or a uniform one noised with eps to a random step n, and
    ``a'`` the best of ``best_of`` actions of the target actor. Where all actions are worth the
    same the policy gets no gradient at all.

    Args:
        actor_network: see :class:`~objectives.regression.DenoisingRegressionLoss`, as for all
            other arguments, outputs and errors.
        qvalue_network: likewise.
        num_actions: K; 64 as published.
        uniform: number of uniform actions; 10 as published.
        uniform_weight: published: .02, which falls to .002 during a run. A buffer of ``weight``.
        best_of: published: 4.
        delay_actor: published: True.
        **options: the others, but for the parts.

    Raises:
        ValueError: for fewer than two own actions, among which no one is better than the mean.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        num_actions: int = 64,
        uniform: int = 10,
        uniform_weight: float = 0.02,
        best_of: int = 4,
        delay_actor: bool = True,
        **options: Any,
    ) -> None:
        if num_actions < 2:
            raise ValueError(f"num_actions must be at least 2, got {num_actions}.")
        super().__init__(
            actor_network,
            qvalue_network,
            proposal=OwnActions(num_actions),
            weight=AdvantageWeight(uniform, uniform_weight),
            target=NoiseTarget(),
            best_of=best_of,
            delay_actor=delay_actor,
            **options,
        )
