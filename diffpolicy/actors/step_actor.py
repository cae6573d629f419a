"""The policy of the denoising MDP: one denoising step."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import nn

from diffpolicy.actors.exploration import is_deterministic
from diffpolicy.actors.keys import required
from diffpolicy.actors.protocol import ChainActor
from diffpolicy.sde import gaussian_log_prob


class DenoisingStepActor(TensorDictModuleBase):
    """One transition (observation, latent, step) -> next latent, with the actor's parameters.

    The policy view of the denoising MDP (arXiv 2512.02019): state ``(s, x_n, n)``, action
    ``x_{n+1}``. Under deterministic exploration the next latent is the kernel's mean.

    Args:
        actor: the actor whose kernels are used; its parameters are shared, not copied.
    """

    def __init__(self, actor: nn.Module) -> None:
        super().__init__()
        if not isinstance(actor, ChainActor):
            raise TypeError(
                f"actor must offer the members of ChainActor, got {type(actor).__name__}."
            )
        self.actor = actor
        keys = actor.keys
        self.in_keys = [*actor.in_keys, keys.latent, keys.step]
        self.out_keys = [keys.next_latent, keys.log_prob, keys.log_ratio]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``next_latent`` ``[*B, A]``, ``log_prob`` and ``log_ratio`` ``[*B, 1]``."""
        keys = self.actor.keys
        latent = required(tensordict, keys.latent)
        denoising = self.actor.denoising_kernel(tensordict)
        next_latent = denoising.mean
        if not is_deterministic():
            next_latent = next_latent + denoising.std * torch.randn_like(next_latent)
        tensordict.set(keys.next_latent, next_latent)
        noising = self.actor.noising_kernel(tensordict)
        log_prob = gaussian_log_prob(next_latent, denoising)
        tensordict.set(keys.log_prob, log_prob)
        tensordict.set(keys.log_ratio, log_prob - gaussian_log_prob(latent, noising))
        return tensordict
