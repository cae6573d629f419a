"""Flows along straight lines from noise to actions in [-1, 1]."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpolicy.sde.base import ProcessModule
from diffpolicy.sde.likelihood import Gaussian
from diffpolicy.sde.protocol import DeterministicStep, Move, NoiseLevel, RolloutMode, Step


class FlowProcess(ProcessModule, ABC):
    """Lines from noise to actions, and steps along a velocity: the base of both flows.

    Latents of the line from noise to the action a are ``x_n = t a + (1 - t) eps`` with ``t = n /
    N``, and the velocity is ``a - eps``. Acting starts at noise and takes ``x_{n+1} = x_n + v /
    N``; no step draws anything, so that a chain has no density and the losses on the denoising MDP
    cannot train it.

    Args:
        action_dim: number of action dimensions ``A``.
        denoising_steps: number of steps ``N``.
        prior_std: of ``x_0``; 1 is what the network is trained for.

    Raises:
        ValueError: for arguments outside their range.
    """

    times: Tensor

    deterministic_steps: ClassVar[tuple[DeterministicStep, ...]] = ("mean", "flow")

    def __init__(self, action_dim: int, denoising_steps: int, *, prior_std: float = 1.0) -> None:
        super().__init__(action_dim, denoising_steps, prior_std, has_densities=False)
        self.register_buffer("times", torch.empty(0))
        self.set_denoising_steps(denoising_steps)

    @property
    def denoising_steps(self) -> int:
        """The number of steps ``N`` in use."""
        return self.times.shape[0]

    def set_denoising_steps(self, denoising_steps: int) -> None:
        """Follow the same velocities in another number of steps, at least 1.

        Raises:
            ValueError: below 1.
        """
        if denoising_steps < 1:
            raise ValueError(f"denoising_steps must be at least 1, got {denoising_steps}.")
        self.times = torch.arange(denoising_steps).to(self.prior_std) / denoising_steps

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the number of steps in use."""
        times = state_dict.setdefault(prefix + "times", self.times)
        if times.shape != self.times.shape:
            self.times = self.times.new_empty(times.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @abstractmethod
    def network_step(self, step: Step) -> Step | Tensor:
        """What the network sees of step ``step``."""

    def moves(self, noise: Tensor, mode: RolloutMode) -> Move:
        """The steps of a chain: the same in all modes, as none draws anything.

        Raises:
            ValueError: for the mode ``"published"``.
        """
        if mode not in ("sample", "mean", "flow"):
            raise ValueError(f"mode must be 'sample', 'mean' or 'flow', got {mode!r}.")

        def move(step: int, latent: Tensor, output: Tensor) -> Tensor:
            return latent + output / self.denoising_steps

        return move

    def denoising_kernel(self, latent: Tensor, output: Tensor, step: Tensor | slice) -> Gaussian:
        """The next latent, with a standard deviation of 0."""
        mean = latent + output / self.denoising_steps
        return Gaussian(mean, torch.zeros_like(mean))

    def noising_kernel(self, next_latent: Tensor, step: Tensor | slice) -> Gaussian:
        """There is none.

        Raises:
            NotImplementedError: always; no step of a flow has a density.
        """
        raise NotImplementedError(
            f"a {type(self).__name__} has no noising kernel, which losses on the denoising MDP and "
            "entropy bounds need; use a DenoisingProcess or a VariancePreservingProcess."
        )

    # -- regression of the velocity -----------------------------------------------------------

    def noise_level(self, step: Tensor) -> NoiseLevel:
        """``t`` and ``1 - t``, ``[*B, 1]``."""
        time = self.times[step].unsqueeze(-1)
        return NoiseLevel(time, 1 - time)

    def output_for_score(self, latent: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """There is none at the first step, whose density is that of the noise.

        Raises:
            NotImplementedError: always; regress the velocity on actions instead.
        """
        raise NotImplementedError(
            f"a {type(self).__name__} is regressed on actions, not on a score."
        )

    def output_for_noise(
        self, latent: Tensor, clean: Tensor, noise: Tensor, step: Tensor
    ) -> Tensor:
        """The velocity ``a - eps`` ``[*B, A]``."""
        return clean - noise

    def bridge_level(self, step: Tensor) -> NoiseLevel:
        """That of :meth:`noise_level`: nothing is left of the action in ``x_0``."""
        return self.noise_level(step)

    def output_for_clean(self, latent: Tensor, clean: Tensor, step: Tensor) -> Tensor:
        """The velocity from ``x_n`` to ``x_N``, ``[*B, A]``."""
        return (clean - latent) / self.noise_level(step).std

    def noise_per_output(self, step: Tensor) -> Tensor:
        """1: velocities count alike at all steps."""
        return torch.ones_like(self.noise_level(step).std)

    def extra_repr(self) -> str:
        """Sizes for ``print(process)``."""
        return f"action_dim={self.action_dim}, denoising_steps={self.denoising_steps}"


class RectifiedFlowProcess(FlowProcess):
    """The network predicts the velocity at a step, which Euler steps follow (arXiv 2209.03003).

    Latents, arguments and errors are those of :class:`FlowProcess`.

    Examples:
        >>> process = RectifiedFlowProcess(2, 4)
        >>> process.noise_level(torch.tensor([0, 3])).signal.squeeze(-1)
        tensor([0.0000, 0.7500])
    """

    def network_step(self, step: Step) -> Step:
        """The trained step at the same time: the one before it, where there is none."""
        if self.denoising_steps == self.trained_steps:
            return step
        return step * self.trained_steps // self.denoising_steps


class MeanFlowProcess(FlowProcess):
    """The network predicts the mean velocity between two times (arXiv 2505.13447).

    Latents, arguments and errors are those of :class:`FlowProcess`. The network reads when a step
    begins and when it ends, so that steps of any length are exact once it is trained: one from
    noise to the action, ``a = x_0 + u(x_0, 0, 1)``, or several.

    Examples:
        >>> MeanFlowProcess(2, 4).network_step(torch.tensor([0, 3]))
        tensor([[0.0000, 0.2500],
                [0.7500, 1.0000]])
    """

    def network_step(self, step: int | Tensor) -> Tensor:
        """The times ``[*B, 2]`` at which steps ``[*B]`` begin and end.

        Real numbers ``[*B, 2]`` are such times and stay what they are.
        """
        if isinstance(step, Tensor) and step.is_floating_point():
            return step
        start = self.times[step]
        return torch.stack((start, start + 1 / self.denoising_steps), -1)
