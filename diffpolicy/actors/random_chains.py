"""Random actions for losses that learn from whole denoising chains."""

import torch
from tensordict import NestedKey, TensorDictBase

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.module import ActorModule
from diffpolicy.sde import draw_noise, noise_chain

# An action of exactly -1 or 1 would need an infinite latent.
_LARGEST = 1 - 1e-6


class RandomChains(ActorModule):
    """Acts uniformly at random and writes a chain that leads to each action.

    A collector's own random actions have no chain, and their reward would be learned for latents
    of zero. Here the action is the end of its chain, whose other latents follow from it through
    the noising kernels of the actor. The exploration type does not matter.

    Args:
        actor: whose keys, bounds and noising kernels are used. Of the observation only the batch
            shape matters.
        noise_key: where to read standard normal noise ``[*B, N+1, A]`` from; None draws it. The
            last index makes the action, which is uniform because it goes through the normal
            distribution function; index n makes ``x_n`` from ``x_{n+1}``.
    """

    def __init__(self, actor: DenoisingActor, *, noise_key: NestedKey | None = None) -> None:
        super().__init__(actor.observation_keys, actor.keys, noise_key)
        self.actor = actor
        self.out_keys = [actor.keys.action, actor.keys.latents]

    @torch.no_grad()
    def _write(self, tensordict: TensorDictBase) -> TensorDictBase:
        actor, keys = self.actor, self.keys
        noise = self.given_noise(tensordict)
        if noise is None:
            noise = draw_noise(actor.process, self.observation(tensordict).shape[:-1])
        # 2 cdf(z) - 1, which is uniform in [-1, 1] for a standard normal z.
        uniform = (noise[..., -1, :] / 2**0.5).erf()
        last = uniform.clamp(-_LARGEST, _LARGEST).atanh()
        tensordict.set(keys.action, actor.squash(last))
        return tensordict.set(keys.latents, noise_chain(actor.process, last, noise[..., :-1, :]))
