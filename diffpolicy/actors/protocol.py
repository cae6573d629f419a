"""The members of an actor that losses rely on."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from diffpolicy.actors.keys import ActorKeys
from diffpolicy.actors.squashing import ActionMap
from diffpolicy.sde import Gaussian, Process


@runtime_checkable
class ChainActor(Protocol):
    """An actor for losses on the denoising MDP: a TensorDict module with these members.

    These losses are DiffPPO, DiffSAC and DiffWPO (arXiv 2512.02019).

    ``in_keys`` are the observation keys, unless ``observation_keys`` says which of them are (see
    :func:`observation_keys`). Acting (calling the module on a TensorDict) writes
    ``keys.action`` and the chain entries of :class:`ActorKeys`. The chain entries must agree
    with the kernels: ``log_prob`` is the density of the same kernel that sampled.

    Some members are optional, and what needs them says so:

    * ``squash``, an :class:`~diffpolicy.actors.ActionSquash` or what has its ``forward`` and
      ``inverse``: chains are checked against actions, and made for given ones.
    * ``squash_log_det(latent)`` maps last latents ``[*B, A]`` to ``log |d action / d latent|``
      ``[*B, 1]`` of actions mapped to [-1, 1], and ``prior_log_prob(latent)`` first latents to
      ``log p(x_0)`` ``[*B, 1]``: together they bound the entropy of the action.
    * ``prior_entropy`` is the mean of ``-log p(x_0)``, for a ``LearnedTemperature`` with
      ``target_entropy="auto"``.
    """

    in_keys: Sequence[NestedKey]
    keys: ActorKeys

    @property
    def denoising_steps(self) -> int:
        """Number of denoising steps ``N``."""
        ...

    def sample_prior(
        self, batch_size: torch.Size | tuple[int, ...], noise: Tensor | None = None
    ) -> Tensor:
        """Draw ``x_0`` of shape ``[*batch_size, A]``, from ``noise`` (standard normal) if given."""
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


class PathSample(NamedTuple):
    """Actions drawn by whole chains, with gradients through the chains.

    ``running_cost + terminal_cost`` takes the place of ``log pi(a | s)``: its expectation is an
    upper bound of the negative entropy of the action (arXiv 2502.02316). Entropies refer to
    actions mapped to [-1, 1].

    Attributes:
        action: action in environment units ``[*B, A]``.
        running_cost: ``sum_n LR_n - log |d tanh|`` ``[*B, 1]``.
        terminal_cost: ``log p(x_0)`` of the prior ``[*B, 1]``.
    """

    action: Tensor
    running_cost: Tensor
    terminal_cost: Tensor


@runtime_checkable
class PathActor(Protocol):
    """An actor for losses that differentiate whole chains (DIME): a module with these members.

    ``in_keys`` are the observation keys (see :func:`observation_keys`), and acting writes
    ``keys.action``.
    """

    in_keys: Sequence[NestedKey]
    keys: ActorKeys

    def sample_path(
        self,
        tensordict: TensorDictBase,
        *,
        noise: Tensor | None = None,
        checkpoint: bool = False,
    ) -> PathSample:
        """Draw one chain per batch element, differentiable in all parameters.

        Args:
            tensordict: observation keys, batch ``[*B]``; must not be written to.
            noise: standard normal ``[*B, N+1, A]``; None draws it.
            checkpoint: save memory by computing activations again in the backward pass.
        """
        ...


@runtime_checkable
class RegressionActor(Protocol):
    """An actor for losses that regress its network on a target: a module with these members.

    Latents of its chains are noised actions (see :class:`~diffpolicy.sde.Process`), and
    ``in_keys`` are the observation keys (see :func:`observation_keys`).
    """

    in_keys: Sequence[NestedKey]
    keys: ActorKeys
    process: Process
    squash: ActionMap

    @property
    def denoising_steps(self) -> int:
        """Number of denoising steps ``N``."""
        ...

    def output(self, rows: TensorDictBase) -> Tensor:
        """What the network says at rows of a chain, differentiable in its parameters.

        Args:
            rows: observation keys, ``latent`` and ``step``, batch ``[*B]``.

        Returns:
            ``[*B, A]``: a score, a noise or a velocity, as the process has it.
        """
        ...

    def sample_action(self, tensordict: TensorDictBase, *, noise: Tensor | None = None) -> Tensor:
        """Actions ``[*B, A]`` of whole chains, whatever the exploration type; differentiable.

        Args:
            tensordict: observation keys, batch ``[*B]``; must not be written to.
            noise: standard normal ``[*B, N+1, A]``; None draws it.
        """
        ...


def observation_keys(actor: ChainActor | PathActor | RegressionActor) -> list[NestedKey]:
    """Which of an actor's ``in_keys`` are observations.

    Those in its attribute ``observation_keys`` if it has one, as the actors here do, which may
    read noise as well; all of them otherwise.
    """
    return list(getattr(actor, "observation_keys", actor.in_keys))
