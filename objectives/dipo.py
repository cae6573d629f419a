"""DIPO: a policy cloned from actions that the critics have improved."""

from typing import Any

from torch import nn

from objectives.q_critic import QNetworks
from objectives.regression import (
    DenoisingRegressionLoss,
    Evenly,
    ImprovedActions,
    NoiseTarget,
)


class DIPOLoss(DenoisingRegressionLoss):
    """Action gradients for a cloned diffusion policy (arXiv 2305.13122).

    Actions of the replay buffer climb the critics' value, a few steps every time that they are
    drawn, and stay where they are left; the policy clones them::

        L_Q  = sum_j (Q_j(s, a) - y)^2,   y = r + gamma (1 - terminated) min_j Q_j(s', a')
        L_pi = |eps_hat(x_n, n, s) - eps|^2 / A,   x_n: the improved action a+, noised with eps

    ``a'`` is an action of the target actor. ``improved_action`` of the transitions is read and
    written where it is there: have the replay buffer keep it
    (``OffPolicyStream(write_back={"improved_action": "action"})``). Published steps are limited by
    the norm of the whole batch's gradient; Adam, which takes them, does not care for its size, so
    that here every row is on its own. There is no entropy and no temperature.

    Args:
        actor_network: see :class:`~objectives.regression.DenoisingRegressionLoss`, as for all
            other arguments, outputs and errors.
        qvalue_network: likewise.
        ascent_steps: of an action in an update; published: 20, 40 on HalfCheetah.
        ascent_lr: of these steps, in [-1, 1] units.
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
        ascent_steps: int = 20,
        ascent_lr: float = 0.03,
        delay_actor: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            proposal=ImprovedActions(ascent_steps, ascent_lr),
            weight=Evenly(),
            target=NoiseTarget(),
            delay_actor=delay_actor,
            **options,
        )
