"""The action as a function of tensors: observations and noise in, actions out.

TensorDicts and exploration types stay outside: this is what acts, and what is exported.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from diffpolicy.actors import ActionSquash, DenoisingActor, EncodedActor, GaussianChainActor
from diffpolicy.policy.spec import PolicySpec

Mode = Literal["mean", "flow", "published", "sample"]


class ActionFunction(nn.Module, ABC):
    """A policy as a function of tensors.

    Attributes:
        denoising_steps: number of denoising steps; 1 without a chain.
        modes: what :meth:`forward` can be asked for; the first one without noise is how the
            policy acts deterministically.
    """

    modes: tuple[Mode, ...]

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.action_dim = spec.action_dim

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one action."""

    @property
    def denoising_steps(self) -> int:
        """Number of denoising steps ``N``; 1 without a chain."""
        return 1

    @abstractmethod
    def forward(self, observations: Sequence[Tensor], noise: Tensor | None, mode: Mode) -> Tensor:
        """Actions ``[*B, A]`` in the units of the environment.

        Args:
            observations: the entries of the spec, ``[*B, F]`` each.
            noise: standard normal ``[*B, *noise_shape]``; read if ``mode`` is ``"sample"``.
            mode: one of ``modes``.
        """


class ChainFunction(ActionFunction):
    """A denoising chain.

    Args:
        spec: of the policy.
        actor: runs the chain.
        encoder: makes what the actor reads from all entries.
    """

    def __init__(self, spec: PolicySpec, actor: DenoisingActor, encoder: nn.Module) -> None:
        super().__init__(spec)
        self.actor = actor
        self.encoder = encoder
        first: Mode = actor.deterministic_step
        self.modes = (first, *(mode for mode in get_args(Mode) if mode != first))

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
        action: Tensor = self.actor.squash(latent)
        return action


class GaussianFunction(ActionFunction):
    """A squashed Gaussian."""

    modes = ("mean", "sample")

    def __init__(self, spec: PolicySpec, network: nn.Module) -> None:
        super().__init__(spec)
        self.network = network
        low, high = torch.from_numpy(spec.actions.low), torch.from_numpy(spec.actions.high)
        self.squash = ActionSquash(low, high)

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


def action_function(spec: PolicySpec, actor: nn.Module) -> ActionFunction:
    """The function of an actor that was built as ``spec`` says; they share their parameters."""
    encoder: nn.Module = _Joined()
    if isinstance(actor, EncodedActor):
        # Builders put one encoder of all entries before the actor.
        encoder, actor = actor.encoder.module[0].module, actor.actor
    if isinstance(actor, DenoisingActor):
        return ChainFunction(spec, actor, encoder)
    if isinstance(actor, GaussianChainActor):
        return GaussianFunction(spec, _MeanAndStd(actor, encoder))
    # TorchRL's TanhNormal: a TensorDictModule, whose network takes the entries one by one.
    return GaussianFunction(spec, actor.module[0].module)  # type: ignore[index,union-attr]
