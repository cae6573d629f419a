"""The denoising process: step sizes, friction, and the two Gaussian kernels they define."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffpolicy.sde.base import check_positive, inverse_softplus
from diffpolicy.sde.likelihood import Gaussian
from diffpolicy.sde.protocol import DeterministicStep, Move, RolloutMode, Step
from diffpolicy.sde.reversal import ReversedNoising
from diffpolicy.sde.schedules import Schedule, schedule_factors

NoisingStep = Literal["same", "next"]


class DenoisingProcess(ReversedNoising):
    r"""A discretised diffusion with a learned denoising and a fixed noising kernel.

    With prior std ``nu``, step size ``dt_n``, schedule factor ``w_n`` and friction ``f`` (one per
    action dimension), ``eta_n = dt_n w_n / f`` and (arXiv 2502.02316, arXiv 2512.02019)::

        x_0                 ~ N(0, nu^2)
        q(x_{n+1} | x_n, s) = N(x_n + eta_n (-x_n / nu^2 + score), 2 k^2 eta_n)
        p(x_n | x_{n+1})    = N(x_{n+1} (1 - eta_m / nu^2),        2 k^2 eta_m)

    where ``m = n`` for ``noising_step="same"`` (DIME) and ``m = min(n + 1, N - 1)`` for
    ``noising_step="next"`` (the denoising MDP). The noise scale ``k`` is 1 in those papers, where
    step sizes set drift and noise at once; :meth:`set_noise_scale` changes the noise alone.

    Args:
        action_dim: number of action dimensions ``A``.
        denoising_steps: number of denoising steps ``N``.
        prior_std: standard deviation ``nu`` of the prior.
        schedule: name or callable, see :func:`~diffpolicy.sde.schedule_factors`.
        step_size: initial ``dt``.
        learn_step_size: whether ``dt`` is a parameter.
        step_size_per_step: one ``dt`` per denoising step instead of a shared one.
        friction: initial friction, the same for every action dimension.
        learn_friction: whether the friction is a parameter.
        noising_step: which step size the noising kernel uses.

    Raises:
        ValueError: for arguments outside their range.

    Examples:
        >>> process = DenoisingProcess(2, 4, prior_std=1.0, step_size=0.2)
        >>> process.step_sizes().shape
        torch.Size([4, 2])
    """

    schedule_factors: Tensor
    noise_scale: Tensor

    deterministic_steps: ClassVar[tuple[DeterministicStep, ...]] = ("mean", "flow", "published")

    def __init__(
        self,
        action_dim: int,
        denoising_steps: int,
        *,
        prior_std: float = 1.0,
        schedule: str | Schedule = "linear",
        step_size: float = 0.1,
        learn_step_size: bool = True,
        step_size_per_step: bool = False,
        friction: float = 1.0,
        learn_friction: bool = True,
        noising_step: NoisingStep = "next",
    ) -> None:
        super().__init__(action_dim, denoising_steps, prior_std, has_densities=True)
        check_positive(step_size=step_size, friction=friction)
        if noising_step not in ("same", "next"):
            raise ValueError(f"noising_step must be 'same' or 'next', got {noising_step!r}.")
        self.noising_step = noising_step
        self._schedule = schedule
        dtype = torch.get_default_dtype()
        factors = schedule_factors(schedule, denoising_steps).to(dtype)
        self.register_buffer("schedule_factors", factors)
        step_shape = (denoising_steps, 1) if step_size_per_step else (1, 1)
        self.raw_step_size = nn.Parameter(torch.empty(step_shape), requires_grad=learn_step_size)
        self.raw_friction = nn.Parameter(torch.empty(action_dim), requires_grad=learn_friction)
        self.register_buffer("noise_scale", torch.ones((), dtype=dtype))
        self._check_stable(step_size / friction * float(factors.max()), prior_std)
        self._initial = (inverse_softplus(step_size), inverse_softplus(friction))
        self.reset_parameters()

    @staticmethod
    def _check_stable(largest: float, prior_std: float) -> None:
        if largest >= 2 * prior_std**2:
            raise ValueError(
                f"step_size is too large: step_size * schedule / friction = {largest:g} must be "
                f"below 2 prior_std^2 = {2 * prior_std**2:g}, or the chain expands instead of "
                "contracting to the prior; half of prior_std^2 is a good start."
            )

    def reset_parameters(self) -> None:
        """Set step sizes and friction back to their initial values."""
        step_size, friction = self._initial
        nn.init.constant_(self.raw_step_size, step_size)
        nn.init.constant_(self.raw_friction, friction)

    def get_extra_state(self) -> Tensor:
        """The number of steps that the score network is trained with, for ``state_dict``."""
        return torch.tensor(self.trained_steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Check that a ``state_dict`` fits.

        Raises:
            ValueError: if it belongs to another number of trained steps.
        """
        if int(state) != self.trained_steps:
            raise ValueError(
                f"state_dict is of a process trained with {int(state)} denoising steps, this one "
                f"has {self.trained_steps}; build it with denoising_steps={int(state)} and change "
                "the number of steps afterwards with set_denoising_steps()."
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the number of steps in use; a state without it leaves it as it is.

        A state from before there was a noise scale has that of 1.
        """
        state_dict.setdefault(prefix + "_extra_state", self.get_extra_state())
        state_dict.setdefault(prefix + "noise_scale", torch.ones_like(self.noise_scale))
        factors = state_dict.setdefault(prefix + "schedule_factors", self.schedule_factors)
        if factors.shape != self.schedule_factors.shape:
            self.schedule_factors = self.schedule_factors.new_empty(factors.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def denoising_steps(self) -> int:
        """The number of denoising steps ``N`` in use."""
        return self.schedule_factors.shape[0]

    def set_denoising_steps(self, denoising_steps: int) -> None:
        """Change the number of steps while keeping the diffusion time.

        Step sizes are rescaled so that their sum stays the same, and the score network is asked
        for the nearest step that it was trained on (:meth:`network_step`).

        Args:
            denoising_steps: the new number of steps, at least 1.

        Raises:
            ValueError: if ``denoising_steps < 1``, or if every step has a step size of its own.
        """
        if self.raw_step_size.shape[0] > 1 and denoising_steps != self.trained_steps:
            raise ValueError(
                f"denoising_steps={denoising_steps} is not possible with step_size_per_step=True, "
                f"which fixes the number of steps to {self.trained_steps}."
            )
        factors = schedule_factors(self._schedule, denoising_steps)
        scale = schedule_factors(self._schedule, self.trained_steps).sum() / factors.sum()
        self.schedule_factors = (scale * factors).to(self.schedule_factors)

    @property
    def friction(self) -> Tensor:
        """Friction per action dimension ``[A]``."""
        return softplus(self.raw_friction)

    def step_sizes(self) -> Tensor:
        """``eta_n = dt_n w_n / friction`` as ``[N, A]``."""
        step_size = softplus(self.raw_step_size)
        return step_size * self.schedule_factors.unsqueeze(-1) / self.friction

    def set_noise_scale(self, noise_scale: float) -> None:
        """Set ``k``; everything that acts, and every density, follows it from now on.

        Args:
            noise_scale: a positive number.

        Raises:
            ValueError: for any other.
        """
        check_positive(noise_scale=noise_scale)
        self.noise_scale.fill_(noise_scale)

    def noise_std(self, step_size: Tensor) -> Tensor:
        """``k sqrt(2 eta)``, the standard deviation of both kernels, in the shape of ``eta``."""
        return self.noise_scale * (2 * step_size).sqrt()

    def network_step(self, step: Step) -> Step:
        """The trained step that the score network sees at runtime step ``step``.

        Args:
            step: an integer or a tensor of integers.
        """
        if self.denoising_steps == self.trained_steps:
            return step
        # The step in whose middle the runtime step lies.
        return (2 * step + 1) * self.trained_steps // (2 * self.denoising_steps)

    def noising_index(self, step: Tensor | slice) -> Tensor | slice:
        """Index ``m`` of the step size in the noising kernel of ``step``."""
        if self.noising_step == "same":
            return step
        if isinstance(step, slice):
            step = torch.arange(self.denoising_steps, device=self.prior_std.device)[step]
        return (step + 1).clamp(max=self.denoising_steps - 1)

    def contraction(self, step_size: Tensor) -> Tensor:
        """``1 - eta / nu^2``, by which both kernels shrink a latent; shape of ``step_size``."""
        return 1 - step_size / self.prior_std.square()

    def denoising_kernel(self, latent: Tensor, score: Tensor, step: Tensor | slice) -> Gaussian:
        """The learned kernel ``q(x_{n+1} | x_n, s)``.

        Args:
            latent: ``x_n`` ``[*B, A]``.
            score: output of the score network at ``x_n`` ``[*B, A]``.
            step: ``n``, integer tensor ``[*B]``, or a slice of steps, which are then the last
                dimension of ``*B``.
        """
        step_size = self.step_sizes()[step]
        mean = torch.addcmul(self.contraction(step_size) * latent, step_size, score)
        return Gaussian(mean, self.noise_std(step_size).expand_as(mean))

    def noising_kernel(self, next_latent: Tensor, step: Tensor | slice) -> Gaussian:
        """The fixed kernel ``p(x_n | x_{n+1})``; ``step`` as in :meth:`denoising_kernel`.

        Args:
            next_latent: ``x_{n+1}`` ``[*B, A]``.
            step: ``n``, integer tensor ``[*B]``, or a slice.
        """
        step_size = self.step_sizes()[self.noising_index(step)]
        mean = self.contraction(step_size) * next_latent
        return Gaussian(mean, self.noise_std(step_size).expand_as(mean))

    def moves(self, noise: Tensor, mode: RolloutMode) -> Move:
        """The steps of a chain, see :func:`~diffpolicy.sde.rollout_chain`.

        Args:
            noise: standard normal ``[*B, N, A]``, read in mode ``"sample"`` only.
            mode: what a step is.

        Returns:
            A function of the step n, ``x_n`` and the network's output there: the next latent.

        Raises:
            ValueError: for an unknown mode.
        """
        step_sizes = self.step_sizes()
        decay, gain = self._drift(step_sizes, mode)
        jump = self.noise_std(step_sizes) * noise if mode == "sample" else torch.zeros_like(noise)
        decays, gains, jumps = decay.unbind(), gain.unbind(), jump.unbind(-2)

        def move(step: int, latent: Tensor, score: Tensor) -> Tensor:
            drifted = torch.addcmul(jumps[step], decays[step], latent)
            return torch.addcmul(drifted, gains[step], score)

        return move

    def _drift(self, step_sizes: Tensor, mode: RolloutMode) -> tuple[Tensor, Tensor]:
        """Factors ``[N, A]`` of latent and score in the noise-free part of a step."""
        contraction = self.contraction(step_sizes)
        match mode:
            case "sample" | "mean":
                return contraction, step_sizes
            case "flow":
                return torch.ones_like(contraction), 0.5 * step_sizes
            case "published":
                return contraction, 0.5 * step_sizes
        raise ValueError(f"mode must be 'sample', 'mean', 'flow' or 'published', got {mode!r}.")

    def noising_steps(self) -> tuple[Tensor, Tensor]:
        """Contraction and variance of the noising steps ``[N, A]``."""
        step_sizes = self.step_sizes()[self.noising_index(slice(None))]
        return self.contraction(step_sizes), self.noise_std(step_sizes).square()

    def extra_repr(self) -> str:
        """Sizes and options."""
        return (
            f"action_dim={self.action_dim}, denoising_steps={self.denoising_steps}, "
            f"prior_std={self.prior_std.item():g}, noising_step={self.noising_step!r}"
        )
