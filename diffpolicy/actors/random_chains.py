"""Denoising chains for actions that no actor chose."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import Transform

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.denoising_mdp import DenoisingMDP
from diffpolicy.actors.keys import required
from diffpolicy.actors.protocol import ChainActor


class RandomChains(TensorDictModuleBase):
    """Acts uniformly at random and writes a chain that leads to each action.

    A collector's own random actions have no chain, and their reward would be learned for latents
    of zero. Here :meth:`DenoisingMDP.chains_for` makes one for every action.

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
        squash, keys = self.actor.squash, self.actor.keys
        shape = (*tensordict.batch_size, squash.action_dim)
        uniform = torch.rand(shape, dtype=squash.low.dtype, device=squash.low.device)
        action = squash.low + (squash.high - squash.low) * uniform
        latents = DenoisingMDP(self.actor).chains_for(tensordict, action)
        tensordict.set(keys.action, squash(latents[..., -1, :]))
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
        super().__init__(in_keys=[*actor.in_keys, keys.action], out_keys=[keys.latents])
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
