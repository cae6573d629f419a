"""The denoising process: step sizes, friction, and the two Gaussian kernels they define."""

import math
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffpolicy.sde.likelihood import Gaussian
from diffpolicy.sde.schedules import Schedule, schedule_factors

NoisingStep = Literal["same", "next"]
Step = TypeVar("Step", int, Tensor)


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value}.")


class DenoisingProcess(nn.Module):
    r"""A discretised diffusion with a learned denoising and a fixed noising kernel.

    With prior std ``nu``, step size ``dt_n``, schedule factor ``w_n`` and friction ``f`` (one per
    action dimension), ``eta_n = dt_n w_n / f`` and (arXiv 2502.02316, arXiv 2512.02019)::

        x_0                 ~ N(0, nu^2)
        q(x_{n+1} | x_n, s) = N(x_n + eta_n (-x_n / nu^2 + score), 2 eta_n)
        p(x_n | x_{n+1})    = N(x_{n+1} (1 - eta_m / nu^2),        2 eta_m)

    where ``m = n`` for ``noising_step="same"`` (DIME) and ``m = min(n + 1, N - 1)`` for
    ``noising_step="next"`` (the denoising MDP).

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

    prior_std: Tensor
    schedule_factors: Tensor

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
        super().__init__()
        if action_dim < 1:
            raise ValueError(f"action_dim must be at least 1, got {action_dim}.")
        for name, value in (
            ("prior_std", prior_std),
            ("step_size", step_size),
            ("friction", friction),
        ):
            _check_positive(name, value)
        if noising_step not in ("same", "next"):
            raise ValueError(f"noising_step must be 'same' or 'next', got {noising_step!r}.")
        self.action_dim = action_dim
        self.trained_steps = denoising_steps
        self.noising_step = noising_step
        self._schedule = schedule
        dtype = torch.get_default_dtype()
        self.register_buffer("prior_std", torch.tensor(prior_std, dtype=dtype))
        factors = schedule_factors(schedule, denoising_steps).to(dtype)
        self.register_buffer("schedule_factors", factors)
        step_shape = (denoising_steps, 1) if step_size_per_step else (1, 1)
        self.raw_step_size = nn.Parameter(torch.empty(step_shape), requires_grad=learn_step_size)
        self.raw_friction = nn.Parameter(torch.empty(action_dim), requires_grad=learn_friction)
        self._check_stable(step_size / friction * float(factors.max()), prior_std)
        self._initial = (_inverse_softplus(step_size), _inverse_softplus(friction))
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
        """Take over the number of steps in use; a state without it leaves it as it is."""
        state_dict.setdefault(prefix + "_extra_state", self.get_extra_state())
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
        """``eta_n = dt_n w_n / friction`` as ``[N, A]``; ``2 eta_n`` is the kernel's variance."""
        step_size = softplus(self.raw_step_size)
        return step_size * self.schedule_factors.unsqueeze(-1) / self.friction

    def network_step(self, step: Step) -> Step:
        """The trained step that the score network sees at runtime step ``step``.

        Args:
            step: an integer or a tensor of integers.
        """
        if self.denoising_steps == self.trained_steps:
            return step
        # The step in whose middle the runtime step lies.
        return (2 * step + 1) * self.trained_steps // (2 * self.denoising_steps)

    def noising_index(self, step: Tensor) -> Tensor:
        """Index ``m`` of the step size in the noising kernel of ``step``."""
        if self.noising_step == "same":
            return step
        return (step + 1).clamp(max=self.denoising_steps - 1)

    def contraction(self, step_size: Tensor) -> Tensor:
        """``1 - eta / nu^2``, by which both kernels shrink a latent; shape of ``step_size``."""
        return 1 - step_size / self.prior_std.square()

    def denoising_kernel(self, latent: Tensor, score: Tensor, step: Tensor) -> Gaussian:
        """The learned kernel ``q(x_{n+1} | x_n, s)``.

        Args:
            latent: ``x_n`` ``[*B, A]``.
            score: output of the score network at ``x_n`` ``[*B, A]``.
            step: ``n``, integer tensor ``[*B]``.
        """
        step_size = self.step_sizes()[step]
        mean = self.contraction(step_size) * latent + step_size * score
        return Gaussian(mean, (2 * step_size).sqrt().expand_as(mean))

    def noising_kernel(self, next_latent: Tensor, step: Tensor) -> Gaussian:
        """The fixed kernel ``p(x_n | x_{n+1})``.

        Args:
            next_latent: ``x_{n+1}`` ``[*B, A]``.
            step: ``n``, integer tensor ``[*B]``.
        """
        step_size = self.step_sizes()[self.noising_index(step)]
        mean = self.contraction(step_size) * next_latent
        return Gaussian(mean, (2 * step_size).sqrt().expand_as(mean))

    def reversing_score(self, latent: Tensor, gradient: Tensor) -> Tensor:
        """The score with which the denoising kernel reverses the noising one.

        The reversal of a diffusion (Anderson 1982) drifts by ``x / nu^2 + 2 grad log p_n(x)``; the
        denoising kernel has ``-x / nu^2 + score``.

        Args:
            latent: ``x_n`` ``[*B, A]``.
            gradient: ``grad log p_n(x_n)``, of the density of noised latents ``[*B, A]``.
        """
        return 2 * (latent / self.prior_std.square() + gradient)

    def sample_prior(
        self, batch_size: torch.Size | tuple[int, ...], noise: Tensor | None = None
    ) -> Tensor:
        """Draw ``x_0`` of shape ``[*batch_size, A]``, from ``noise`` (standard normal) if given."""
        if noise is None:
            noise = torch.randn(
                (*batch_size, self.action_dim),
                dtype=self.prior_std.dtype,
                device=self.prior_std.device,
            )
        return noise * self.prior_std

    def extra_repr(self) -> str:
        """Sizes and options for ``print(process)``."""
        return (
            f"action_dim={self.action_dim}, denoising_steps={self.denoising_steps}, "
            f"prior_std={self.prior_std.item():g}, noising_step={self.noising_step!r}"
        )
