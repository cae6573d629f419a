"""Denoising chains for actions that no actor chose."""

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.envs import Transform

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.denoising_mdp import DenoisingMDP
from diffpolicy.actors.encoded import EncodedActor
from diffpolicy.actors.keys import required
from diffpolicy.actors.module import ActorModule
from diffpolicy.actors.protocol import ChainActor, observation_keys
from diffpolicy.sde import draw_noise

# An action of exactly -1 or 1 would need an infinite latent.
_LARGEST = 1 - 1e-6


class RandomChains(ActorModule):
    """Acts uniformly at random and writes a chain that leads to each action.

    A collector's own random actions have no chain, and their reward would be learned for latents
    of zero. Here :meth:`DenoisingMDP.chains_for` makes one for every action. The exploration type
    does not matter.

    Args:
        actor: whose keys, bounds and noising kernels are used. Of the observation only the batch
            shape matters.
        noise_key: where to read standard normal noise ``[*B, N+1, A]`` from; None draws it. The
            last index makes the action, which is uniform because it goes through the normal
            distribution function; index n makes ``x_n`` from ``x_{n+1}``.
    """

    def __init__(
        self, actor: DenoisingActor | EncodedActor, *, noise_key: NestedKey | None = None
    ) -> None:
        super().__init__(actor.observation_keys, actor.keys, noise_key)
        self.actor = actor
        self.out_keys = [actor.keys.action, actor.keys.latents]

    @torch.no_grad()
    def _write(self, tensordict: TensorDictBase) -> TensorDictBase:
        actor, keys = self.actor, self.keys
        noise = self.given_noise(tensordict)
        if noise is None:
            seen = required(tensordict, actor.observation_keys[0])
            encoded = isinstance(actor, EncodedActor)
            batch = tensordict.batch_size if encoded else seen.shape[:-1]
            noise = draw_noise(actor.process, batch)
        # 2 cdf(z) - 1, which is uniform in [-1, 1] for a standard normal z.
        uniform = (noise[..., -1, :] / 2**0.5).erf().clamp(-_LARGEST, _LARGEST)
        action = actor.squash(uniform.atanh())
        latents = DenoisingMDP(actor).chains_for(tensordict, action, noise[..., :-1, :])
        tensordict.set(keys.action, actor.squash(latents[..., -1, :]))
        return tensordict.set(keys.latents, latents)


class ActionChains(Transform):
    """A transform that writes chains for the actions of transitions, see ``chains_for``.

    In a replay buffer it makes every loss on chains learn from data without chains: offline data,
    demonstrations, random steps::

        buffer = TensorDictReplayBuffer(storage=..., transform=ActionChains(actor))

    By default every sample gets new chains, whatever it holds. ``only_missing=True`` keeps the
    chains that lead to their actions, for buffers that mix the actor's own steps with others.

    Args:
        actor: whose keys, bounds and noising kernels are used; not copied.
        only_missing: whether to keep chains that end at their action.
    """

    def __init__(self, actor: ChainActor, *, only_missing: bool = False) -> None:
        keys = actor.keys
        super().__init__(in_keys=[*observation_keys(actor), keys.action], out_keys=[keys.latents])
        # A reference, not a child: the actor's parameters belong to a loss.
        self.__dict__["mdp"] = DenoisingMDP(actor)
        self.only_missing = only_missing

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the latents ``[*B, N+1, A]`` of transitions ``[*B]`` that were sampled."""
        mdp: DenoisingMDP = self.__dict__["mdp"]
        keys = mdp.keys
        latents = mdp.chains_for(tensordict, required(tensordict, keys.action))
        if self.only_missing and tensordict.get(keys.latents, None) is not None:
            missing = mdp.misled(tensordict).unsqueeze(-1)
            latents = torch.where(missing, latents, tensordict.get(keys.latents))
        return tensordict.set(keys.latents, latents)
