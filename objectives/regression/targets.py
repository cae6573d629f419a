"""What the network of a policy is fitted to at noised actions."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffpolicy.actors.keys import required
from objectives.draws import Draws
from objectives.regression.parts import Drawless, Noised, RegressionTarget

if TYPE_CHECKING:
    from objectives.regression.loss import DenoisingRegressionLoss


class NoiseTarget(Drawless):
    """The noise of the noised action: denoising score matching, behaviour cloning of the actions.

    Errors count as errors of the predicted noise, whatever the network says.
    """

    def __call__(
        self, loss: "DenoisingRegressionLoss", noised: Noised, draws: Draws
    ) -> RegressionTarget:
        """The output that belongs to the noise."""
        process, keys = loss.actor_network.process, loss.chain_keys
        latent, step = required(noised.rows, keys.latent), required(noised.rows, keys.step)
        step = step.squeeze(-1)
        output = process.output_for_noise(latent, noised.clean, noised.noise, step)
        return RegressionTarget(output, process.noise_per_output(step))


class ValueGradientTarget(Drawless):
    """The score of ``exp(Q / T)``, from the gradient of the critics at the noised action.

    Errors count as errors of the network's output.
    """

    def __call__(
        self, loss: "DenoisingRegressionLoss", noised: Noised, draws: Draws
    ) -> RegressionTarget:
        """The output that belongs to ``mean_j grad_x Q_j / T + grad_x log |d squash(x)|``."""
        actor, keys = loss.actor_network, loss.chain_keys
        latent, step = required(noised.rows, keys.latent), required(noised.rows, keys.step)

        def log_density(latent: Tensor) -> Tensor:
            value = loss.each_value(noised.rows, actor.squash(latent)).mean(-2)
            return (value / loss.temperature() + actor.squash.log_det(latent)).sum()

        gradient = torch.func.grad(log_density)(latent)
        output = actor.process.output_for_score(latent, gradient, step.squeeze(-1))
        return RegressionTarget(output, torch.ones_like(output))
