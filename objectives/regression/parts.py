"""What the regression family is made of: where actions come from, what they weigh, and targets."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from diffpolicy.actors import ActionMap, RegressionActor
from diffpolicy.sde import NoiseLevel
from objectives.draws import Draws
from objectives.temperature import Temperature

if TYPE_CHECKING:
    from objectives.regression.loss import DenoisingRegressionLoss


class Candidates(NamedTuple):
    """Actions that a proposal makes for transitions ``[*B]``.

    Attributes:
        action: ``[K, *B, A]``, in the units of the environment.
        value: of the critics ``[K, *B, 1]``; None where no weight needs it.
    """

    action: Tensor
    value: Tensor | None = None


class Weighted(NamedTuple):
    """Actions that the network is fitted to.

    Attributes:
        action: ``[M, *B, A]``.
        weight: ``[M, *B, 1]``.
        entropy: ``[*B, 1]``, of the weights, for a temperature that is to follow it.
    """

    action: Tensor
    weight: Tensor
    entropy: Tensor | None = None


class Noised(NamedTuple):
    """Noised actions: rows ``[kappa, M, *B]`` of M actions at kappa steps.

    Attributes:
        rows: observation, latent and step, which the network reads.
        clean: the latents before the noise ``[kappa, M, *B, A]``.
        noise: standard normal ``[kappa, M, *B, A]``.
    """

    rows: TensorDictBase
    clean: Tensor
    noise: Tensor


class RegressionTarget(NamedTuple):
    """What the network should say at rows ``[*R]``, and what its error is multiplied by.

    Attributes:
        output: ``[*R, A]``.
        scale: broadcastable to it.
        rows: what the network reads; None are the noised rows that the target was made for.
    """

    output: Tensor
    scale: Tensor
    rows: TensorDictBase | None = None


class Part(Protocol):
    """What may draw random numbers."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of its random numbers in the ``draws`` of a loss."""
        ...

    @property
    def divides_by_temperature(self) -> bool:
        """Whether a temperature of 0 is an error."""
        ...

    def draw(self, loss: "DenoisingRegressionLoss", like: Tensor) -> dict[str, Tensor]:
        """Random numbers ``[*B, ...]`` by name, for actions ``like`` ``[*B, A]``."""
        ...


class Proposal(Part, Protocol):
    """Where the actions come from that the network is fitted to."""

    @property
    def number(self) -> int:
        """K, how many actions there are for each transition."""
        ...

    def __call__(
        self, loss: "DenoisingRegressionLoss", transitions: TensorDictBase, draws: Draws
    ) -> Candidates:
        """K actions for transitions ``[*B]``; no gradient is recorded."""
        ...


class Weight(Part, Protocol):
    """How much actions count, and which are left out or added."""

    @property
    def varies(self) -> bool:
        """Whether their mean is worth reporting."""
        ...

    @property
    def has_entropy(self) -> bool:
        """Whether it gives the entropy of the weights, for a learned temperature to follow."""
        ...

    def kept(self, number: int) -> int:
        """M, how many actions are left of ``number``."""
        ...

    def __call__(
        self, loss: "DenoisingRegressionLoss", candidates: Candidates, draws: Draws
    ) -> Weighted:
        """M actions with weights; no gradient is recorded."""
        ...


class Target(Part, Protocol):
    """What the network is fitted to at noised actions."""

    def __call__(
        self, loss: "DenoisingRegressionLoss", noised: Noised, draws: Draws
    ) -> RegressionTarget:
        """Outputs and scales; no gradient is recorded."""
        ...


class LogProb(Part, Protocol):
    """An estimate of the policy's log-density, for targets with its entropy."""

    def __call__(
        self, loss: "DenoisingRegressionLoss", rows: TensorDictBase, action: Tensor, draws: Draws
    ) -> Tensor:
        """``log pi(a | s)`` ``[*B, 1]`` of actions ``[*B, A]``; no gradient is recorded."""
        ...


class Drawless:
    """A part without random numbers."""

    reads: tuple[str, ...] = ()
    divides_by_temperature = False

    def draw(self, loss: "DenoisingRegressionLoss", like: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}


def noised_actions(
    actor: RegressionActor,
    rows: TensorDictBase,
    action: Tensor,
    step: Tensor,
    noise: Tensor | None,
    level: Callable[[Tensor], NoiseLevel] | None = None,
) -> Noised:
    """Actions as latents of a chain at given steps.

    Args:
        actor: has the process.
        rows: what the network reads, and whatever else rows should hold, ``[*B]``.
        action: ``[M, *B, A]`` in the units of the environment.
        step: integers ``[kappa, *B]``.
        noise: standard normal ``[kappa, M, *B, A]``; None draws it.
        level: what latents are made of at given steps; None is ``noise_level`` of the process.
    """
    keys, shape = actor.keys, (step.shape[0], *action.shape[:-1])
    step = step.unsqueeze(1).expand(shape)
    clean = actor.squash.inverse(action).expand(*shape, action.shape[-1])
    noise = torch.randn_like(clean) if noise is None else noise
    signal, std = (actor.process.noise_level if level is None else level)(step)
    noised = rows.expand(shape).set(keys.latent, signal * clean + std * noise)
    return Noised(noised.set(keys.step, step.unsqueeze(-1)), clean, noise)


def valid_actions(squash: ActionMap, action: Tensor, valid: Tensor | None) -> Tensor:
    """Actions ``[*B, A]``; padding, which may hold anything, becomes one in the bounds."""
    return action if valid is None else torch.where(valid, action, squash(torch.zeros_like(action)))


def check_temperature(temperature: Temperature, parts: Sequence[Part]) -> None:
    """Raise a ValueError if the temperature is 0 and one of the parts divides by it."""
    for part in parts:
        if temperature.is_zero and part.divides_by_temperature:
            raise ValueError(f"temperature must be above 0: {type(part).__name__} divides by it.")
