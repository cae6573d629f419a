"""Random actions for losses that learn from whole denoising chains."""

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from diffpolicy.actors.actor import DenoisingActor

# An action of exactly -1 or 1 would need an infinite latent.
_LARGEST = 1 - 1e-6


class RandomChains(TensorDictModuleBase):
    """Acts uniformly at random and writes a chain that leads to each action.

    A collector's own random actions have no chain, and their reward would be learned for latents
    of zero. Here the action is the end of its chain, which is drawn from there backwards, through
    the noising kernels of the actor.

    Args:
        actor: whose keys, bounds and noising kernels are used.
    """

    def __init__(self, actor: DenoisingActor) -> None:
        super().__init__()
        self.actor = actor
        self.in_keys = list(actor.in_keys)
        self.out_keys = [actor.keys.action, actor.keys.latents]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action ``[*B, A]`` and the latents ``[*B, N+1, A]``."""
        actor, keys, batch = self.actor, self.actor.keys, tensordict.batch_size
        shape, device = (*batch, actor.squash.action_dim), actor.squash.low.device
        uniform = 2 * torch.rand(shape, device=device) - 1
        latents = [uniform.clamp(-_LARGEST, _LARGEST).atanh()]
        for step in reversed(range(actor.denoising_steps)):
            row = TensorDict(batch_size=batch, device=device)
            row.set(keys.next_latent, latents[-1])
            row.set(keys.step, torch.full((*batch, 1), step, device=device))
            mean, std = actor.noising_kernel(row)
            latents.append(mean + std * torch.randn_like(mean))
        tensordict.set(keys.action, actor.squash(latents[0]))
        return tensordict.set(keys.latents, torch.stack(latents[::-1], -2))
