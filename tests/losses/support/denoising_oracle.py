"""The denoising MDP written out by hand, one row at a time, as the specification states it."""

import contextlib
import math

import torch
from rowwise import noise_of, start_of
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.functional import softplus
from torchrl.objectives import LossModule

from diffpolicy.networks import HLGauss


def log_normal(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(value; mean, variance) of one vector, a scalar."""
    return (-((value - mean) ** 2) / (2 * variance) - 0.5 * (2 * math.pi * variance).log()).sum()


class ByHand:
    """Kernels, log-ratios, values and soft values of single rows, from a loss's networks.

    Args:
        loss: its actor must have a linear schedule and one step size per step.
        reduction: how the critics become one value.
        target: whether values come from the target critic.
    """

    def __init__(self, loss: LossModule, reduction: str = "min", *, target: bool = False) -> None:
        self.loss, self.actor = loss, loss.actor_network
        self.reduction, self.target = reduction, target
        self.steps = self.actor.process.denoising_steps
        self.temperature = float(loss.temperature())
        self.nu2 = self.actor.process.prior_std**2
        size = self.actor.squash.action_dim
        self.prior = self.actor.process.prior_std * start_of(torch.zeros(1), size)

    def eta(self, step: int) -> Tensor:
        process, level = self.actor.process, (self.steps - step) / self.steps
        factor = (1 - level) * 0.17 + level
        return softplus(process.raw_step_size[step]) * factor / softplus(process.raw_friction)

    def kernel(self, latent: Tensor, observation: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``q(. | x_n, s)``."""
        at = torch.tensor([step])
        score = self.actor.score_network(latent[None], at, observation[None])[0]
        eta = self.eta(step)
        return latent + eta * (-latent / self.nu2 + score), 2 * eta

    def noising(self, next_latent: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``p(. | x_{n+1})``."""
        eta = self.eta(min(step + 1, self.steps - 1))
        return next_latent * (1 - eta / self.nu2), 2 * eta

    def log_ratio(
        self, latent: Tensor, next_latent: Tensor, observation: Tensor, step: int
    ) -> Tensor:
        log_q = log_normal(next_latent, *self.kernel(latent, observation, step))
        return log_q - log_normal(latent, *self.noising(next_latent, step))

    def sample(self, latent: Tensor, observation: Tensor, step: int) -> Tensor:
        mean, variance = self.kernel(latent, observation, step)
        return mean + variance.sqrt() * noise_of(observation, step, len(mean))

    def critics(self, observation: Tensor, next_latent: Tensor, step: int) -> Tensor:
        """Output of the critics' heads: values ``[E]``, or logits ``[E, K]``."""
        network = self.loss.qvalue_network
        params = self.loss.target_qvalue_network_params if self.target else None
        with contextlib.nullcontext() if params is None else params.to_module(network):
            out = network.module(observation[None], next_latent[None], torch.tensor([[step]]))
        return out[1][0] if isinstance(out, tuple) else out[0, :, 0]

    def q(self, observation: Tensor, next_latent: Tensor, step: int) -> Tensor:
        values = expected(self.critics(observation, next_latent, step), self.loss.value_support)
        return values.min() if self.reduction == "min" else values.mean()

    def soft_value(
        self, latent: Tensor, observation: Tensor, step: int, budget: int, inside: float
    ) -> Tensor:
        """``V_n``: up to ``budget`` steps of the current policy, then a critic."""
        following = self.sample(latent, observation, step)
        cost = self.temperature * self.log_ratio(latent, following, observation, step)
        if budget == 1 or step == self.steps - 1:
            return self.q(observation, following, step) - cost
        later = self.soft_value(following, observation, step + 1, budget - 1, inside)
        return inside * later - cost

    @torch.no_grad()
    def target_value(
        self, row: TensorDictBase, step: int, *, gamma: float, budget: int = 1, inside: float = 1.0
    ) -> Tensor:
        """The soft target of ``Q_n(s, x_{n+1})`` of one transition."""
        if step < self.steps - 1:
            latent = row["latents"][step + 1]
            value = self.soft_value(latent, row["observation"], step + 1, budget, inside)
            return inside * value
        following = row["next"]
        value = self.soft_value(self.prior, following["observation"], 0, budget, inside)
        alive = 0.0 if bool(following["terminated"]) else 1.0
        return following["reward"].squeeze() + gamma * alive * value


def bins(support: HLGauss) -> tuple[float, float, int]:
    return float(support.edges[0]), float(support.edges[-1]), len(support.edges) - 1


def expected(head: Tensor, support: HLGauss | None) -> Tensor:
    """Values ``[E]`` of scalar heads, or means of the bins' centres."""
    if support is None:
        return head
    low, high, number = bins(support)
    width = (high - low) / number
    return head.softmax(-1) @ torch.tensor([low + (i + 0.5) * width for i in range(number)])


def critic_distance(head: Tensor, target: Tensor, support: HLGauss | None) -> Tensor:
    """Sum over the critics of squared errors, or of cross-entropies with a smoothed target."""
    if support is None:
        return (head - target).square().sum()
    low, high, number = bins(support)
    width = (high - low) / number
    normal = torch.distributions.Normal(target.clamp(low, high), 0.75 * width)
    cdf = torch.stack([normal.cdf(torch.tensor(low + i * width)) for i in range(number + 1)])
    probabilities = (cdf[1:] - cdf[:-1]) / (cdf[-1] - cdf[0])
    return -(probabilities * head.log_softmax(-1)).sum()
