"""Encoders in front of an actor."""

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential, dispatch
from torch import nn

from diffpolicy.actors.protocol import ChainActor, PathActor, RegressionActor

_READ_OBSERVATION = ("denoising_kernel", "sample_path", "output", "sample_action")


class EncodedActor(TensorDictModuleBase):
    """An actor behind encoders, with the members of the actor.

    The losses make one of every ``TensorDictSequential`` of encoders and an actor; it shares the
    modules of the sequence. ``in_keys`` are what the encoders read, for example ``pixels``.

    Args:
        sequence: encoders that write what the actor reads, and the actor as its last module.
        detach: whether losses of the actor leave the encoders alone, which a critic trains then.

    Raises:
        TypeError: if the last module is no :class:`ChainActor`, :class:`PathActor` or
            :class:`RegressionActor`.
    """

    #: That of the actor alone would say nothing about encoders; builders set the whole one.
    recipe: Any = None

    def __init__(self, sequence: TensorDictSequential, *, detach: bool = False) -> None:
        super().__init__()
        self.detach = detach
        modules: list[Any] = list(sequence.module)
        self.encoder, self.actor = TensorDictSequential(*modules[:-1]), modules[-1]
        if not isinstance(modules[-1], (ChainActor, PathActor, RegressionActor)):
            raise TypeError(
                "the last module of a TensorDictSequential must be an actor (ChainActor, PathActor "
                f"or RegressionActor), got {type(modules[-1]).__name__}."
            )
        self.in_keys = list(sequence.in_keys)
        self.out_keys = list(sequence.module[-1].out_keys)

    @property
    def observation_keys(self) -> list[NestedKey]:
        """What the encoders read, and the observations that the actor reads as they are."""
        noise = getattr(self.actor, "noise_key", None)
        return [key for key in self.in_keys if key != noise]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Encode, act, and write what the actor writes."""
        acted = self.actor(self._encoded(tensordict))
        return tensordict.update(acted.select(*self.out_keys))

    def __getattr__(self, name: str) -> Any:
        """Members of the actor; those that read the observation get the encoded one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "actor" not in self.__dict__.get("_modules", {}):
                raise
        member = getattr(self.actor, name)
        if name not in _READ_OBSERVATION:
            return member
        return lambda rows, **options: member(self._encoded(rows), **options)

    def _encoded(self, tensordict: TensorDictBase) -> TensorDictBase:
        if not self.detach:
            return self.encoder(tensordict.copy())
        with torch.no_grad():
            return self.encoder(tensordict.copy())


def with_encoder(network: nn.Module) -> nn.Module:
    """An :class:`EncodedActor` of a ``TensorDictSequential``, any other network unchanged."""
    return EncodedActor(network) if isinstance(network, TensorDictSequential) else network
