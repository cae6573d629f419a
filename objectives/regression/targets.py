"""What the network of a policy is fitted to at noised actions."""

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import Tensor

from diffpolicy.actors.keys import required
from diffpolicy.sde import NoiseLevel
from objectives.draws import Draws
from objectives.regression.parts import Drawless, Noised, RegressionTarget

if TYPE_CHECKING:
    from objectives.regression.loss import DenoisingRegressionLoss

# Noise beyond it is one in 1e14.
_FAR = 7.5


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

    divides_by_temperature = True

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


class MeanFlowTarget:
    """The mean velocity of a flow between two times, from the network's own derivative.

    Of a :class:`~diffpolicy.sde.MeanFlowProcess`. With times ``t < t'`` of [0, 1], the latent ``x =
    t a + (1 - t) eps`` and its velocity ``v = a - eps`` (arXiv 2505.13447)::

        u(x, t, t') = v + (t' - t) du/dt,   du/dt = v . grad_x u + d_t u

    which one forward-mode product gives. The times take the place of the steps that the loss has
    drawn.
    """

    divides_by_temperature = False
    reads = ("times",)

    def draw(self, loss: "DenoisingRegressionLoss", like: Tensor) -> dict[str, Tensor]:
        """``times`` ``[*B, kappa, M, 2]``, uniform in [0, 1], in any order."""
        kept = loss.weight.kept(loss.proposal.number)
        shape = (*like.shape[:-1], loss.sampled_steps, kept, 2)
        return {"times": torch.rand_like(like.new_empty(shape))}

    def __call__(
        self, loss: "DenoisingRegressionLoss", noised: Noised, draws: Draws
    ) -> RegressionTarget:
        """The mean velocity between two times, at rows of its own."""
        actor, keys = loss.actor_network, loss.chain_keys
        times = draws.get("times", 2)
        if times is None:
            times = torch.rand_like(noised.clean[..., :1].expand(*noised.clean.shape[:-1], 2))
        start, end = times.sort(-1).values.split(1, -1)
        velocity = noised.clean - noised.noise
        latent = noised.noise + start * velocity

        def rows_from(latent: Tensor, start: Tensor) -> TensorDictBase:
            rows = noised.rows.copy().set(keys.latent, latent)
            return rows.set(keys.step, torch.cat((start, end), -1))

        def mean_velocity(latent: Tensor, start: Tensor) -> Tensor:
            return actor.output(rows_from(latent, start))

        tangents = (velocity, torch.ones_like(start))
        with loss.actor_network_params.to_module(actor, preserve_module_state=False):
            rate = torch.func.jvp(mean_velocity, (latent, start), tangents)[1]
        output = velocity + (end - start) * rate
        return RegressionTarget(output, torch.ones_like(output), rows_from(latent, start))


class PosteriorTarget:
    """The mean noise under ``exp(Q / T)``: what noised this latent, if actions had that density.

    Noises that may have made the latent are drawn, those that lead outside of the bounds left out,
    and weighed by ``softmax_k(Q(s, a_k) / T + log |d squash|)`` of the actions that they come from
    (Q-weighted noise estimation, arXiv 2502.11612).

    Args:
        number: K, of noises.

    Raises:
        ValueError: below 1.
    """

    divides_by_temperature = True
    reads = ("posterior_noise",)

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"the number of noises must be at least 1, got {number}.")
        self.number = number

    def draw(self, loss: "DenoisingRegressionLoss", like: Tensor) -> dict[str, Tensor]:
        """``posterior_noise`` ``[*B, kappa, M, K, A]``."""
        kappa, kept = loss.sampled_steps, loss.weight.kept(loss.proposal.number)
        shape = (*like.shape[:-1], kappa, kept, self.number, like.shape[-1])
        return {"posterior_noise": torch.randn_like(like.new_empty(shape))}

    def __call__(
        self, loss: "DenoisingRegressionLoss", noised: Noised, draws: Draws
    ) -> RegressionTarget:
        """The output that belongs to the mean noise."""
        actor, keys = loss.actor_network, loss.chain_keys
        latent, step = required(noised.rows, keys.latent), required(noised.rows, keys.step)
        step = step.squeeze(-1)
        level = actor.process.noise_level(step)
        given = draws.get("posterior_noise", 3)
        if given is None:
            noise = torch.randn_like(latent.expand(self.number, *latent.shape))
        else:
            noise = given.movedim(2, 0)
        bounds = actor.squash.latent_bounds
        if bounds is not None:
            noise = _from_inside(noise, latent, level, *bounds)
        clean = (latent - level.std * noise) / level.signal
        value = loss.values(noised.rows, actor.squash(clean)) / loss.temperature()
        weight = (value + actor.squash.log_det(clean)).softmax(0)
        mean_noise, mean_clean = (weight * noise).sum(0), (weight * clean).sum(0)
        output = actor.process.output_for_noise(latent, mean_clean, mean_noise, step)
        return RegressionTarget(output, actor.process.noise_per_output(step))


def _from_inside(
    noise: Tensor, latent: Tensor, level: NoiseLevel, lower: Tensor, upper: Tensor
) -> Tensor:
    """Standard normal noise ``[K, *R, A]`` moved to where latents come from the bounds ``[A]``.

    Quantiles stay what they are, so that the result is normal noise cut off at both ends.
    """
    low = ((latent - level.signal * upper) / level.std).clamp(-_FAR, _FAR)
    high = ((latent - level.signal * lower) / level.std).clamp(-_FAR, _FAR)
    # In double precision, whose tails reach as far as _FAR on both sides.
    share, below, above = (torch.special.ndtr(value.double()) for value in (noise, low, high))
    moved = torch.special.ndtri(below + share * (above - below))
    return torch.minimum(torch.maximum(moved.to(latent), low), high)
