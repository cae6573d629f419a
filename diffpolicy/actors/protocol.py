"""What a loss needs from an actor."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from diffpolicy.actors.keys import ActorKeys
from diffpolicy.sde import Gaussian


@runtime_checkable
class ChainActor(Protocol):
    """A TensorDict module with these members works with every loss of the library.

    ``in_keys`` are the observation keys. Acting (calling the module on a TensorDict) writes
    ``keys.action`` and the chain entries of :class:`ActorKeys`. The chain entries must agree
    with the kernels: ``log_prob`` is the density of the same kernel that sampled.
    """

    in_keys: Sequence[NestedKey]
    keys: ActorKeys

    @property
    def denoising_steps(self) -> int:
        """Number of denoising steps ``N``."""
        ...

    def sample_prior(self, batch_size: torch.Size | tuple[int, ...]) -> Tensor:
        """Draw ``x_0`` of shape ``[*batch_size, A]``."""
        ...

    def denoising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """The learned kernel ``q(. | x_n, s)`` of denoising-MDP rows.

        Args:
            rows: observation keys, ``latent`` and ``step``, batch ``[*B]``.

        Returns:
            Mean and std ``[*B, A]``.
        """
        ...

    def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """The reference kernel ``p(. | x_{n+1})`` of denoising-MDP rows.

        Args:
            rows: ``next_latent`` and ``step``, batch ``[*B]``.

        Returns:
            Mean and std ``[*B, A]``.
        """
        ...
