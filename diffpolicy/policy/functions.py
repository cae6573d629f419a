"""The action as a function of tensors: observations and noise in, actions out.

TensorDicts and exploration types stay outside: this is what acts, and what is exported.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffpolicy.actors import (
    ActionMap,
    ActionSquash,
    DenoisingActor,
    EncodedActor,
    GaussianChainActor,
)
from diffpolicy.errors import ArgumentError
from diffpolicy.policy.interface import Interface

Mode = Literal["mean", "flow", "published", "sample"]


class ActionFunction(nn.Module, ABC):
    """A policy as a function of tensors.

    Args:
        interface: says what is read, and the bounds of what is planned.
        squash: maps the last latent into bounds.

    Attributes:
        denoising_steps: number of denoising steps; 1 without a chain.
        modes: what :meth:`forward` can be asked for; the first one without noise is how the
            policy acts deterministically.
    """

    modes: tuple[Mode, ...]

    def __init__(self, interface: Interface, squash: type[ActionMap] = ActionSquash) -> None:
        super().__init__()
        # Whatever bounds an actor was trained in, these are the units of the environment.
        self.squash = squash(*map(torch.from_numpy, interface.bounds))

    @property
    def action_dim(self) -> int:
        """Number of dimensions ``A`` of what is planned: those of all actions of a chunk."""
        return self.squash.action_dim

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one plan."""

    @property
    def denoising_steps(self) -> int:
        """Number of denoising steps ``N``; 1 without a chain."""
        return 1

    @abstractmethod
    def forward(self, observations: Sequence[Tensor], noise: Tensor | None, mode: Mode) -> Tensor:
        """Actions, or chunks of actions, ``[*B, A]`` in the units of the environment.

        Args:
            observations: the entries of the interface, ``[*B, F]`` each.
            noise: standard normal ``[*B, *noise_shape]``; read if ``mode`` is ``"sample"``.
            mode: one of ``modes``.
        """

    def check_mode(self, argument: str, mode: Mode, *without: Mode) -> Mode:
        """Return one of ``modes``; ArgumentError otherwise.

        Args:
            argument: its name in the error.
            mode: what was given.
            *without: modes that do not go.
        """
        known = [own for own in self.modes if own not in without]
        if mode not in known:
            raise ArgumentError(argument, mode, f"must be one of {', '.join(known)} here.")
        return mode

    def read_noise(
        self, noise: NDArray[np.float32] | None, batch: tuple[int, ...], deterministic: bool
    ) -> NDArray[np.float32] | None:
        """Noise of a batch of ``n`` rows as ``[n, *noise_shape]``, if there is any.

        Raises:
            ArgumentError: if it would not be read, or has another shape.
        """
        if noise is None:
            return None
        expected, problem = (*batch, *self.noise_shape), None
        if deterministic:
            problem = "is for sampled actions; give deterministic=False, too."
        elif np.shape(noise) != expected:
            problem = f"must have the shape {expected}."
        if problem is not None:
            raise ArgumentError("noise", f"of the shape {np.shape(noise)}", problem)
        return np.asarray(noise, np.float32).reshape(-1, *self.noise_shape)

    def plan(
        self,
        rows: Sequence[NDArray[Any]],
        noise: Tensor | None,
        mode: Mode,
        device: torch.device,
    ) -> NDArray[np.float32]:
        """What :meth:`forward` returns for arrays, without gradients."""
        with torch.inference_mode():
            given = [torch.from_numpy(row).to(device) for row in rows]
            plan = self(given, None if noise is None else noise.to(device), mode)
        array: NDArray[np.float32] = plan.cpu().numpy()
        return array


class ChainFunction(ActionFunction):
    """A denoising chain.

    Args:
        interface: of the policy.
        actor: runs the chain.
        encoder: makes what the actor reads from all entries.
    """

    def __init__(self, interface: Interface, actor: DenoisingActor, encoder: nn.Module) -> None:
        super().__init__(interface, type(actor.squash))
        self.actor = actor
        self.encoder = encoder
        first: Mode = actor.deterministic_step
        known: tuple[Mode, ...] = (*actor.process.deterministic_steps, "sample")
        self.modes = (first, *(mode for mode in known if mode != first))

    @property
    def denoising_steps(self) -> int:
        """Number of denoising steps ``N``; may be set."""
        return self.actor.denoising_steps

    @denoising_steps.setter
    def denoising_steps(self, value: int) -> None:
        self.actor.denoising_steps = value

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """``(N + 1, A)``."""
        return self.denoising_steps + 1, self.action_dim

    def forward(self, observations: Sequence[Tensor], noise: Tensor | None, mode: Mode) -> Tensor:
        """Run the chain; without noise it starts at 0."""
        observation = self.encoder(*observations)
        if mode == "sample":
            assert noise is not None
            latent = self.actor.sample_latent(observation, noise)
        else:
            self.actor.deterministic_step = mode
            latent = self.actor.sample_latent(observation, deterministic=True)
        action: Tensor = self.squash(latent)
        return action


class GaussianFunction(ActionFunction):
    """A squashed Gaussian."""

    modes = ("mean", "sample")

    def __init__(self, interface: Interface, network: nn.Module) -> None:
        super().__init__(interface)
        self.network = network

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """``(A,)``."""
        return (self.action_dim,)

    def forward(self, observations: Sequence[Tensor], noise: Tensor | None, mode: Mode) -> Tensor:
        """The squashed mean, or a sample."""
        loc, scale = self.network(*observations)
        if mode == "sample":
            assert noise is not None
            loc = loc + scale * noise
        action: Tensor = self.squash(loc)
        return action


class _MeanAndStd(nn.Module):
    """Mean and standard deviation of a :class:`GaussianChainActor`."""

    def __init__(self, actor: GaussianChainActor, encoder: nn.Module) -> None:
        super().__init__()
        self.actor = actor
        self.encoder = encoder

    def forward(self, *observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor.mean_network(self.encoder(*observations)), self.actor.std


class _Joined(nn.Module):
    """The entries side by side, where there are no images."""

    def forward(self, *observations: Tensor) -> Tensor:
        return torch.cat(observations, -1)


def action_function(interface: Interface, actor: nn.Module) -> ActionFunction:
    """The function of an actor that was built for ``interface``; they share their parameters."""
    encoder: nn.Module = _Joined()
    if isinstance(actor, EncodedActor):
        # Builders put one encoder of all entries before the actor.
        encoder, actor = actor.encoder.module[0].module, actor.actor
    if isinstance(actor, DenoisingActor):
        return ChainFunction(interface, actor, encoder)
    if isinstance(actor, GaussianChainActor):
        return GaussianFunction(interface, _MeanAndStd(actor, encoder))
    # TorchRL's TanhNormal: a TensorDictModule, whose network takes the entries one by one.
    return GaussianFunction(interface, actor.module[0].module)  # type: ignore[index,union-attr]
