"""The call that all actors share, with its checks of names and the noise that may be given."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from diffpolicy.actors.exploration import is_deterministic
from diffpolicy.actors.keys import ActorKeys, check_collisions, required
from diffpolicy.sde import Gaussian


class ActorModule(TensorDictModuleBase, ABC):
    """A TensorDict module that reads observations and, if asked to, standard normal noise.

    ``in_keys`` are the observation keys, further inputs and ``noise_key``. The module is called
    with a TensorDict or with keywords, and ``torch.export.export`` traces both::

        torch.export.export(actor, args=(), kwargs={"observation": observation})

    Args:
        observation_keys: keys of the observation entries.
        keys: names of everything else that is read or written.
        noise_key: where to read noise from; None draws it from the generator of the device.

    Raises:
        ValueError: if an observation or the noise has the name of something else.
    """

    def __init__(
        self,
        observation_keys: Sequence[NestedKey],
        keys: ActorKeys,
        noise_key: NestedKey | None,
        *,
        further_in_keys: Sequence[NestedKey] = (),
    ) -> None:
        super().__init__()
        noise_keys = [] if noise_key is None else [noise_key]
        check_collisions("in_keys", observation_keys, [*keys.all, *noise_keys])
        check_collisions("noise_key", noise_keys, keys.all)
        self.observation_keys = list(observation_keys)
        self.keys = keys
        self.noise_key = noise_key
        self.in_keys = [*observation_keys, *further_in_keys, *noise_keys]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase, **unknown: Any) -> TensorDictBase:
        """Write ``out_keys`` into ``tensordict`` of any batch shape.

        Raises:
            KeyError: naming a missing key and the keys that are there.
            TypeError: for a keyword that is not one of ``in_keys``.
        """
        if unknown:
            raise TypeError(
                f"{type(self).__name__} reads {self.in_keys} (nested keys joined by '_' as "
                f"keywords), got {sorted(unknown)}."
            )
        return self._write(tensordict)

    @abstractmethod
    def _write(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute and set ``out_keys``."""

    def observation(self, tensordict: TensorDictBase) -> Tensor:
        """The observation entries, concatenated over their last dimension, ``[*B, S]``.

        Raises:
            KeyError: naming the missing key and the keys that are there.
        """
        values = [required(tensordict, key) for key in self.observation_keys]
        return values[0] if len(values) == 1 else torch.cat(values, -1)

    def given_noise(self, tensordict: TensorDictBase) -> Tensor | None:
        """The noise in ``tensordict``, or None if it is to be drawn."""
        return None if self.noise_key is None else required(tensordict, self.noise_key)

    def drawn(self, kernel: Gaussian, tensordict: TensorDictBase) -> Tensor:
        """A sample of ``kernel`` from the noise in ``tensordict``, or its mean without noise."""
        if is_deterministic():
            return kernel.mean
        return kernel.sample(self.given_noise(tensordict))
