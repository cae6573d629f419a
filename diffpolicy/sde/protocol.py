"""What actors and losses ask of a process that turns noise into actions."""

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from diffpolicy.sde.likelihood import Gaussian

DeterministicStep = Literal["mean", "flow", "published"]
RolloutMode = Literal["sample"] | DeterministicStep
Move = Callable[[int, Tensor, Tensor], Tensor]
Step = TypeVar("Step", int, Tensor)


class NoiseLevel(NamedTuple):
    """Latents of step n are ``signal x_N + std eps``; both ``[*B, A]`` or ``[*B, 1]``."""

    signal: Tensor
    std: Tensor


@runtime_checkable
class Process(Protocol):
    """A chain ``x_0 .. x_N`` from noise to an action, whose steps a network decides.

    What the network's output means is the process's: the score of
    :class:`~diffpolicy.sde.DenoisingProcess`, the noise of
    :class:`~diffpolicy.sde.VariancePreservingProcess`, the velocity of
    :class:`~diffpolicy.sde.RectifiedFlowProcess`, the mean velocity of
    :class:`~diffpolicy.sde.MeanFlowProcess`.
    """

    action_dim: int
    prior_std: Tensor
    #: What a chain without noise can follow, see :func:`~diffpolicy.sde.rollout_chain`.
    deterministic_steps: ClassVar[tuple[DeterministicStep, ...]]

    @property
    def denoising_steps(self) -> int:
        """Number of steps ``N`` in use."""
        ...

    @property
    def has_densities(self) -> bool:
        """Whether every step has noise, and so a density and an entropy."""
        ...

    def set_denoising_steps(self, denoising_steps: int) -> None:
        """Change the number of steps of the same process."""
        ...

    def network_step(self, step: Step) -> Step | Tensor:
        """What the network sees of step ``step``: a trained step ``[*B]``, or times ``[*B, 2]``."""
        ...

    def moves(self, noise: Tensor, mode: RolloutMode) -> Move:
        """The steps of a chain from noise ``[*B, N, A]``: from n, ``x_n`` and output to next."""
        ...

    def denoising_kernel(self, latent: Tensor, output: Tensor, step: Tensor | slice) -> Gaussian:
        """``q(x_{n+1} | x_n, s)`` of latents ``[*B, A]`` at steps ``[*B]``, or a slice of them."""
        ...

    def noising_kernel(self, next_latent: Tensor, step: Tensor | slice) -> Gaussian:
        """``p(x_n | x_{n+1})`` of next latents ``[*B, A]`` at steps ``[*B]``, or a slice."""
        ...

    def noise_level(self, step: Tensor) -> NoiseLevel:
        """How much is left of ``x_N`` in ``x_n``, and the noise, at steps ``[*B]``."""
        ...

    def output_for_score(self, latent: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """The output ``[*B, A]`` that belongs to the score of the noised density at ``x_n``."""
        ...

    def output_for_noise(
        self, latent: Tensor, clean: Tensor, noise: Tensor, step: Tensor
    ) -> Tensor:
        """The output ``[*B, A]`` that belongs to the noise between ``x_N`` and ``x_n``."""
        ...

    def bridge_level(self, step: Tensor) -> NoiseLevel:
        """:meth:`noise_level` of chains that end in ``x_N`` and begin at the prior."""
        ...

    def output_for_clean(self, latent: Tensor, clean: Tensor, step: Tensor) -> Tensor:
        """The output ``[*B, A]`` whose step has the mean of noised chains to ``x_N``."""
        ...

    def noise_per_output(self, step: Tensor) -> Tensor:
        """What turns a distance of outputs into one that the process weighs evenly over steps."""
        ...

    def sample_prior(
        self, batch_size: torch.Size | tuple[int, ...], noise: Tensor | None = None
    ) -> Tensor:
        """Draw ``x_0`` of shape ``[*batch_size, A]``, from ``noise`` (standard normal) if given."""
        ...


def accumulated_noise(contraction: Tensor, variance: Tensor) -> NoiseLevel:
    """What noising steps ``x_n = c_n x_{n+1} + sqrt(v_n) z`` come to, from ``x_N``, ``[N, A]``.

    Args:
        contraction: ``c`` ``[N, A]``.
        variance: ``v`` ``[N, A]``.
    """
    signal, spread = torch.ones_like(contraction[0]), torch.zeros_like(variance[0])
    signals, spreads = [], []
    for shrunk, added in zip(contraction.flip(0), variance.flip(0), strict=True):
        signal, spread = shrunk * signal, shrunk.square() * spread + added
        signals.append(signal)
        spreads.append(spread)
    return NoiseLevel(torch.stack(signals[::-1]), torch.stack(spreads[::-1]).sqrt())


def check_densities(process: Process) -> None:
    """Raise a ValueError if the steps of a process have no densities."""
    if not process.has_densities:
        raise ValueError(
            f"the steps of this {type(process).__name__} have no densities, which entropy bounds, "
            "log-ratios and the losses on the denoising MDP need; use a DenoisingProcess, or a "
            "VariancePreservingProcess with min_std above 0."
        )
