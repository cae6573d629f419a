"""The gradients that Wasserstein policy optimisation compares, at single denoising steps."""

import torch
from tensordict import TensorDictBase
from torch import Tensor

from diffpolicy.actors import DenoisingMDP
from diffpolicy.sde import Gaussian
from objectives import functional as fn
from objectives.base import evaluation_mode
from objectives.q_critic import QCritic, QKeys


class WassersteinStep:
    """Gradients of log-ratio and value at a sample, and the distance from the behaviour policy.

    Args:
        mdp: the denoising MDP of the actor.
        critic: reads ``Q_n(s, x_{n+1})``.
        precondition: multiply gradients of a kernel's mean by its variance and those of its std by
            half of it; the gradient through the noising kernel by the noising variance.
        kl_samples: number of samples of a Monte Carlo divergence; None takes the exact one.

    Raises:
        ValueError: if ``kl_samples`` is less than 1.
    """

    def __init__(
        self, mdp: DenoisingMDP, critic: QCritic, *, precondition: bool, kl_samples: int | None
    ) -> None:
        if kl_samples is not None and kl_samples < 1:
            raise ValueError(f"kl_samples must be at least 1, or None, got {kl_samples}.")
        self.mdp = mdp
        self.critic = critic
        self.precondition = precondition
        self.kl_samples = kl_samples

    def log_ratio_slope(
        self, rows: TensorDictBase, next_latent: Tensor, denoising: Gaussian
    ) -> tuple[Tensor, Tensor]:
        """``LR_n`` at a sample ``[*R, 1]``, and its gradient there ``[*R, A]``.

        The gradient is ``-(a - m) / std^2 - grad_a log p(x_n | a)``, whose dependence on the
        policy's parameters is kept.
        """
        keys, actor = self.mdp.keys, self.mdp.actor

        def log_noising_prob(at: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            moved = rows.select(*self.mdp.observation_keys, keys.latent, keys.step)
            noising = actor.noising_kernel(moved.set(keys.next_latent, at))
            log_prob = noising.log_prob(rows[keys.latent])
            return log_prob.sum(), (log_prob, noising.std)

        noising_slope, (log_noising, noising_std) = torch.func.grad(log_noising_prob, has_aux=True)(
            next_latent
        )
        log_ratio = denoising.log_prob(next_latent) - log_noising
        mean, std = denoising
        if self.precondition:
            variance = std.square()
            mean = fn.scaled_gradient(mean, variance)
            std = fn.scaled_gradient(std, variance / 2)
            noising_slope = fn.scaled_gradient(noising_slope, noising_std.square())
        return log_ratio, -(next_latent - mean) / std.square() - noising_slope

    def value_gradient(
        self, rows: TensorDictBase, next_latent: Tensor, params: TensorDictBase, keys: QKeys
    ) -> Tensor:
        """``grad_a Q_n(s, a)`` ``[*R, A]`` without gradient, from parameters without gradient."""
        network = self.critic.network

        def value(at: Tensor) -> Tensor:
            moved = rows.copy().set(self.mdp.keys.next_latent, at)
            values = self.critic.evaluate(params, moved.select(*network.in_keys), keys)
            return self.critic.over_critics(values.value).sum()

        with evaluation_mode(network):
            return torch.func.grad(value)(next_latent).detach()

    def divergence(
        self,
        behaviour: Gaussian,
        denoising: Gaussian,
        valid: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """``KL(behaviour || policy)`` of kernels ``[*R, A]``, ``[*R, 1]``.

        Args:
            behaviour: kernels that the trust region is around.
            denoising: kernels of the policy.
            valid: boolean ``[*R, 1]``; None counts every row.
            noise: standard normal ``[kl_samples, *R, A]``; None draws it.
        """
        if valid is not None:  # padding may hold anything, a std of zero too
            pairs = zip(behaviour, denoising, strict=True)
            behaviour = Gaussian(*(torch.where(valid, old, new.detach()) for old, new in pairs))
        if self.kl_samples is not None and noise is None:
            noise = torch.randn_like(behaviour.mean.expand(self.kl_samples, *behaviour.mean.shape))
        return fn.kernel_divergence(behaviour, denoising, noise)
