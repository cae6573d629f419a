"""What an actor's kernels say of steps that were taken."""

import torch
from tensordict import TensorDictBase
from torch import Tensor

from diffpolicy.actors.chains import chain_steps
from diffpolicy.actors.keys import required
from diffpolicy.actors.step_entropy import StepEntropy
from diffpolicy.sde import log_ratio


class StepKernels(StepEntropy):
    """Densities of the steps of chains; part of :class:`DenoisingMDP`."""

    def log_ratio(self, rows: TensorDictBase) -> Tensor:
        """``LR_n = log q(x_{n+1} | x_n, s) - log p(x_n | x_{n+1})`` of rows ``[*R]``, ``[*R, 1]``.

        Differentiable in the actor's parameters and in the latents.
        """
        return log_ratio(
            required(rows, self.keys.latent),
            required(rows, self.keys.next_latent),
            self.actor.denoising_kernel(rows),
            self.actor.noising_kernel(rows),
        )

    @torch.no_grad()
    def with_kernels(self, rollout: TensorDictBase) -> TensorDictBase:
        """Transitions ``[*B]`` with all that acting writes of a chain, from its latents.

        An actor that returns the latents only acts faster: here the rest is computed for all
        steps at once. Call it before the actor is trained on the rollout, and before its statistics
        move: the kernels are those of the actor as it is now.

        Args:
            rollout: the observation and ``latents`` ``[*B, N+1, A]``.

        Returns:
            A shallow copy with ``log_prob`` and ``log_ratio`` ``[*B, N, 1]``, ``kernel_mean`` and
            ``kernel_std`` ``[*B, N, A]``; a rollout that has them is returned as it is.

        Raises:
            KeyError: if the latents or an observation key are missing.
            ValueError: if the chains have another number of steps.
        """
        keys = self.keys
        if all(rollout.get(key, None) is not None for key in keys.per_step):
            return rollout
        rows = chain_steps(
            rollout,
            observation_keys=self.observation_keys,
            keys=keys,
            denoising_steps=self.denoising_steps,
        )
        kernel, noising = self.actor.denoising_kernel(rows), self.actor.noising_kernel(rows)
        log_prob = kernel.log_prob(rows[keys.next_latent])
        out = rollout.copy()
        out.set(keys.log_prob, log_prob)
        out.set(keys.log_ratio, log_prob - noising.log_prob(rows[keys.latent]))
        out.set(keys.kernel_mean, kernel.mean)
        return out.set(keys.kernel_std, kernel.std)
