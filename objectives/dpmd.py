"""DPMD and FPMD: policy mirror descent with a diffusion or a flow."""

import math
from typing import Any

from torch import nn

from diffpolicy.sde import FlowProcess, MeanFlowProcess
from objectives.q_critic import QNetworks
from objectives.regression import (
    BoltzmannWeight,
    DenoisingRegressionLoss,
    MeanFlowTarget,
    NoiseTarget,
    OwnActions,
)
from objectives.temperature import LearnedTemperature, Temperature


class DPMDLoss(DenoisingRegressionLoss):
    """Diffusion policy mirror descent (arXiv 2502.00361).

    A step of mirror descent from the target actor ``pi_old`` is ``pi_old exp(Q / T)``. K of its
    actions, weighed by their share of it, are what the policy is fitted to::

        L_Q  = sum_j (Q_j(s, a) - y)^2,   y = r + gamma (1 - terminated) min_j Q_j(s', a')
        L_pi = mean_k w_k |eps_hat(x_n, n, s) - eps|^2 / A,   w_k = K softmax_k(Q(s, a_k) / T)
        L_T  = T stopgrad(H(w) - log K + kl)

    ``x_n`` is ``a_k`` noised with eps to a random step n. With a rectified flow the same loss
    compares velocities, see :class:`FPMDLoss`. A learned temperature keeps the divergence of the
    step, ``log K - H(w)``, at ``kl``. The published code reuses the actions of the critic's targets
    and normalises over the batch; this is the step for each state by itself.

    Args:
        actor_network: see :class:`~objectives.regression.DenoisingRegressionLoss`, as for all
            other arguments, outputs and errors.
        qvalue_network: likewise.
        temperature: a number, a Temperature (a learned one follows ``weight_entropy``), or None:
            learned from 1 so that the step's divergence is ``kl``.
        num_actions: K.
        kl: divergence of a step in nats, below ``log K``; read if ``temperature`` is None.
        spread: std of noise on the K actions in [-1, 1] units, without which a policy that clones
            its own samples becomes a point.
        **options: the others, but for the parts.

    Raises:
        ValueError: for arguments outside their range.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        temperature: float | Temperature | None = None,
        num_actions: int = 16,
        kl: float = 1.0,
        spread: float = 0.2,
        **options: Any,
    ) -> None:
        if num_actions < 2:
            raise ValueError(f"num_actions must be at least 2, got {num_actions}.")
        most = math.log(num_actions)
        if not 0 < kl < most:
            raise ValueError(f"kl must be between 0 and log(num_actions) = {most:.3g}, got {kl}.")
        if temperature is None:
            temperature = LearnedTemperature(1.0, target_entropy=most - kl)
        super().__init__(
            actor_network,
            qvalue_network,
            proposal=OwnActions(num_actions, spread=spread, delayed=True),
            weight=BoltzmannWeight(),
            target=NoiseTarget(),
            temperature=temperature,
            delay_actor=True,
            **options,
        )


class FPMDLoss(DPMDLoss):
    """Flow policy mirror descent (arXiv 2507.23675): :class:`DPMDLoss` for a flow.

    On a :class:`~diffpolicy.sde.RectifiedFlowProcess` the network predicts the velocity ``a - eps``
    of a line from noise to an action. As the policy narrows the lines straighten, so that a trained
    one can act in a single step: set ``denoising_steps`` of the actor to 1. On a
    :class:`~diffpolicy.sde.MeanFlowProcess` it predicts mean velocities between two times, see
    :class:`~objectives.regression.MeanFlowTarget`, so that one step is exact once it is trained.
    Arguments and outputs are those of DPMDLoss.

    Raises:
        TypeError: if the actor's process is no :class:`~diffpolicy.sde.FlowProcess`.
    """

    def __init__(self, actor_network: nn.Module, qvalue_network: QNetworks, **options: Any) -> None:
        super().__init__(actor_network, qvalue_network, **options)
        process = self.actor_network.process
        if not isinstance(process, FlowProcess):
            raise TypeError(
                "FPMDLoss needs an actor on a RectifiedFlowProcess or a MeanFlowProcess, got "
                f"{type(process).__name__}; DPMDLoss takes it."
            )
        if isinstance(process, MeanFlowProcess):
            self.target = MeanFlowTarget()
