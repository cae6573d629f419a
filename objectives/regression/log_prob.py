"""The log-density of a policy that predicts noise."""

import math
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import Tensor

from diffpolicy.actors import observation_keys
from objectives.draws import Draws
from objectives.regression.parts import noised_actions

if TYPE_CHECKING:
    from objectives.regression.loss import DenoisingRegressionLoss


class DenoisingLogProb:
    """``log pi(a | s)`` from how well the network tells the noise of noised actions.

    With the squared signal ``abar_n`` of step n (scaled so that signal and noise add to 1), next
    steps being cleaner, and d action dimensions (arXiv 2502.11612)::

        log p(x_N) = sum_n w_n (abar_n d - mean |eps_hat - eps|^2) - d/2 log(2 pi e)
        w_n        = (abar_{n+1} - abar_n) / (2 abar_n (1 - abar_n)),   abar_N = 1

    and ``log pi = log p - log |d squash|`` in [-1, 1] units. It is a bound for a perfect
    network and infinitely many steps, and an estimate with noise of its own otherwise.

    Args:
        number: noises for each step.

    Raises:
        ValueError: below 1.
    """

    divides_by_temperature = False
    reads = ("density_noise",)

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"the number of noises must be at least 1, got {number}.")
        self.number = number

    def draw(self, loss: "DenoisingRegressionLoss", like: Tensor) -> dict[str, Tensor]:
        """``density_noise`` ``[*B, N, J, A]``."""
        shape = (*like.shape[:-1], loss.denoising_steps, self.number, like.shape[-1])
        return {"density_noise": torch.randn_like(like.new_empty(shape))}

    def __call__(
        self, loss: "DenoisingRegressionLoss", rows: TensorDictBase, action: Tensor, draws: Draws
    ) -> Tensor:
        """``[*B, 1]``, of actions ``[*B, A]`` of the policy."""
        actor, steps = loss.actor_network, loss.denoising_steps
        every = torch.arange(steps, device=action.device)
        step = every.reshape(-1, *(1,) * rows.batch_dims).expand(steps, *rows.batch_size)
        several = action.expand(self.number, *action.shape)
        observed = rows.select(*observation_keys(actor), strict=False)
        noised = noised_actions(actor, observed, several, step, draws.get("density_noise", 2))
        place = noised.rows[loss.chain_keys.step].squeeze(-1)
        latent = noised.rows[loss.chain_keys.latent]
        wanted = actor.process.output_for_noise(latent, noised.clean, noised.noise, place)
        scale = actor.process.noise_per_output(place)
        error = scale * (actor.output(noised.rows) - wanted)
        mean = error.square().sum(-1, keepdim=True).mean(1)
        level = actor.process.noise_level(every)
        signal, noise = level.signal.square(), level.std.square()
        # For processes whose signal and noise do not add to 1; per dimension, where they differ.
        share = (signal / (signal + noise)).mean(-1)
        after = torch.cat((share[1:], torch.ones_like(share[:1])))
        weight = (after - share) / (2 * share * (1 - share))
        shape = (steps, *(1,) * (mean.ndim - 1))
        dimensions = action.shape[-1]
        gain = weight.reshape(shape) * (share.reshape(shape) * dimensions - mean)
        constant = 0.5 * dimensions * math.log(2 * math.pi * math.e)
        return gain.sum(0) - constant - actor.squash.log_det(noised.clean[0, 0])
