"""Acting with noise on the actions of another actor."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn

from diffpolicy.actors.exploration import is_deterministic


class NoisyActor(TensorDictModuleBase):
    """Adds normal noise to actions, within their bounds.

    Under TorchRL's deterministic exploration types it acts as the actor alone.

    Args:
        actor: a TensorDict module that writes actions ``[*B, A]``, with a ``squash`` that knows
            their bounds.
        alpha: a module that, called without arguments, gives a scalar; it is read at every call.
        scale: ``scale alpha()`` is the std of the noise, in [-1, 1] units.

    Raises:
        ValueError: if ``scale`` is negative.
    """

    def __init__(self, actor: TensorDictModuleBase, alpha: nn.Module, scale: float) -> None:
        super().__init__()
        if not scale >= 0:
            raise ValueError(f"scale must be at least 0, got {scale}.")
        self.actor = actor
        self.alpha = alpha
        self.scale = scale
        self.in_keys = list(actor.in_keys)
        self.out_keys = [actor.keys.action]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action."""
        (key,) = self.out_keys
        action = self.actor(tensordict.copy())[key]
        if not is_deterministic():
            noise = self.scale * self.alpha() * torch.randn_like(action)
            action = self.actor.squash.moved(action, noise)
        return tensordict.set(key, action)
