"""The variance-preserving diffusion of DDPM, for actions in [-1, 1]."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffpolicy.sde.base import ProcessModule, check_positive
from diffpolicy.sde.clipping import inward_clamp
from diffpolicy.sde.likelihood import Gaussian
from diffpolicy.sde.protocol import DeterministicStep, Move, NoiseLevel, RolloutMode, Step
from diffpolicy.sde.schedules import Schedule, noise_levels

Variance = Literal["posterior", "beta"]


class VariancePreservingProcess(ProcessModule):
    r"""DDPM on actions in [-1, 1]: the network predicts the noise (arXiv 2006.11239).

    Step n leads from ``t = N - n`` to ``t - 1``; ``abar_n`` is the square of what is left of the
    action in ``x_n``, ``abar_N = 1``, ``alpha_n = abar_n / abar_{n+1}``, ``beta_n = 1 - alpha_n``::

        x_0                 ~ N(0, prior_std^2)
        p(x_n | x_{n+1})    = N(sqrt(alpha_n) x_{n+1}, beta_n)
        q(x_{n+1} | x_n, s) = N(c_n clip(a) + d_n x_n, std_n^2),
                              a = (x_n - sqrt(1 - abar_n) eps) / sqrt(abar_n)
        c_n = beta_n sqrt(abar_{n+1}) / (1 - abar_n)
        d_n = (1 - abar_{n+1}) sqrt(alpha_n) / (1 - abar_n)

    ``std_n^2`` is ``beta_n (1 - abar_{n+1}) / (1 - abar_n)`` (``"posterior"``) or ``beta_n``, and 0
    at the last step, but never below ``min_std``: a step without noise has no density, which
    DiffPPO, DiffSAC and DIME need.

    Args:
        action_dim: number of action dimensions ``A``.
        denoising_steps: number of denoising steps ``N``.
        schedule: ``"cosine"``, ``"vp"``, ``"linear"``, or a callable from ``N`` to ``abar`` ``[N]``
            from the action's end of the chain to the noise, such as
            :class:`~diffpolicy.sde.LinearBetas`.
        variance: of the steps, see above.
        prior_std: of ``x_0``; 1 is what the network is trained for.
        clip: limit of the predicted action; None has none.
        inward_gradient: whether clipping passes gradients that lead back inside, see
            :func:`~diffpolicy.sde.inward_clamp`; for losses that differentiate through the chain.
        min_std: smallest noise of a step.

    Raises:
        ValueError: for arguments outside their range.

    Examples:
        >>> process = VariancePreservingProcess(2, 20, schedule="vp")
        >>> process.noise_level(torch.tensor([0, 19])).std.shape
        torch.Size([2, 1])
    """

    levels: Tensor

    deterministic_steps: ClassVar[tuple[DeterministicStep, ...]] = ("mean", "flow")

    def __init__(
        self,
        action_dim: int,
        denoising_steps: int,
        *,
        schedule: str | Schedule = "cosine",
        variance: Variance = "posterior",
        prior_std: float = 1.0,
        clip: float | None = 1.0,
        inward_gradient: bool = False,
        min_std: float = 0.0,
    ) -> None:
        super().__init__(action_dim, denoising_steps, prior_std, has_densities=min_std > 0)
        if variance not in ("posterior", "beta"):
            raise ValueError(f"variance must be 'posterior' or 'beta', got {variance!r}.")
        if clip is not None:
            check_positive(clip=clip)
        if min_std < 0:
            raise ValueError(f"min_std must be at least 0, got {min_std}.")
        self.variance = variance
        self.clip = clip
        self.inward_gradient = inward_gradient
        self.min_std = min_std
        self._schedule = schedule
        dtype = torch.get_default_dtype()
        self.register_buffer("levels", torch.empty(0, dtype=dtype))
        self.set_denoising_steps(denoising_steps)

    @property
    def denoising_steps(self) -> int:
        """The number of denoising steps ``N`` in use."""
        return self.levels.shape[0] - 1

    def set_denoising_steps(self, denoising_steps: int) -> None:
        """Walk through the noise levels in another number of steps.

        Fewer steps choose among the trained levels; more add geometric means of neighbours, for
        which the network is asked as for the noisier one.

        Raises:
            ValueError: below 1.
        """
        if denoising_steps < 1:
            raise ValueError(f"denoising_steps must be at least 1, got {denoising_steps}.")
        trained = noise_levels(self._schedule, self.trained_steps).flip(0)
        log_level = torch.cat((trained, torch.ones(1, dtype=torch.float64))).log()
        place = torch.arange(denoising_steps) * self.trained_steps
        step = place // denoising_steps
        share = (place / denoising_steps - step) * (denoising_steps > self.trained_steps)
        between = log_level[step].lerp(log_level[step + 1], share.to(log_level))
        self.levels = torch.cat((between.exp(), torch.ones(1))).to(self.levels)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the number of steps in use."""
        levels = state_dict.setdefault(prefix + "levels", self.levels)
        if levels.shape != self.levels.shape:
            self.levels = self.levels.new_empty(levels.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def network_step(self, step: Step) -> Step:
        """The trained step that the network sees at runtime step ``step``."""
        if self.denoising_steps == self.trained_steps:
            return step
        return step * self.trained_steps // self.denoising_steps

    def _coefficients(self) -> tuple[Tensor, ...]:
        """``abar_n``, ``abar_{n+1}``, ``alpha_n``, ``beta_n`` ``[N, 1]``."""
        level, following = self.levels[:-1].unsqueeze(-1), self.levels[1:].unsqueeze(-1)
        alpha = level / following
        return level, following, alpha, 1 - alpha

    def _std(self) -> Tensor:
        """Noise of the steps ``[N, 1]``."""
        level, following, _, beta = self._coefficients()
        variance = beta * (1 - following) / (1 - level) if self.variance == "posterior" else beta
        last = torch.arange(self.denoising_steps, device=beta.device) == self.denoising_steps - 1
        return torch.where(last.unsqueeze(-1), 0.0, variance.sqrt()).clamp_min(self.min_std)

    def _clean(self, latent: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The action that belongs to a predicted noise."""
        clean = (latent - (1 - level).sqrt() * noise) / level.sqrt()
        if self.clip is None:
            return clean
        if self.inward_gradient:
            return inward_clamp(clean, self.clip)
        return clean.clamp(-self.clip, self.clip)

    def denoising_kernel(self, latent: Tensor, output: Tensor, step: Tensor | slice) -> Gaussian:
        """The learned kernel ``q(x_{n+1} | x_n, s)``.

        Args:
            latent: ``x_n`` ``[*B, A]``.
            output: predicted noise at ``x_n`` ``[*B, A]``.
            step: ``n``, integer tensor ``[*B]``, or a slice of steps, which are then the last
                dimension of ``*B``.
        """
        level, following, alpha, beta = (value[step] for value in self._coefficients())
        of_clean = beta * following.sqrt() / (1 - level)
        of_latent = (1 - following) * alpha.sqrt() / (1 - level)
        mean = of_clean * self._clean(latent, output, level) + of_latent * latent
        return Gaussian(mean, self._std()[step].expand_as(mean))

    def noising_kernel(self, next_latent: Tensor, step: Tensor | slice) -> Gaussian:
        """The fixed kernel ``p(x_n | x_{n+1})``; ``step`` as in :meth:`denoising_kernel`."""
        _, _, alpha, beta = (value[step] for value in self._coefficients())
        mean = alpha.sqrt() * next_latent
        return Gaussian(mean, beta.sqrt().expand_as(mean))

    def moves(self, noise: Tensor, mode: RolloutMode) -> Move:
        """The steps of a chain, see :func:`~diffpolicy.sde.rollout_chain`.

        ``"sample"`` draws from the denoising kernels, ``"mean"`` follows their means, and
        ``"flow"`` is the step of DDIM (arXiv 2010.02502), ``sqrt(abar_{n+1}) a + sqrt(1 -
        abar_{n+1}) eps`` with the clipped action a and the noise that belongs to it.

        Args:
            noise: standard normal ``[*B, N, A]``, read in mode ``"sample"`` only.
            mode: what a step is.

        Raises:
            ValueError: for another mode.
        """
        if mode not in ("sample", "mean", "flow"):
            raise ValueError(f"mode must be 'sample', 'mean' or 'flow', got {mode!r}.")
        level, following, alpha, beta = self._coefficients()
        if mode == "flow":
            of_latent = ((1 - following) / (1 - level)).sqrt()
            of_clean = following.sqrt() - of_latent * level.sqrt()
        else:
            of_latent = (1 - following) * alpha.sqrt() / (1 - level)
            of_clean = beta * following.sqrt() / (1 - level)
        jump = self._std() * noise if mode == "sample" else torch.zeros_like(noise)
        levels, latents, cleans = level.unbind(), of_latent.unbind(), of_clean.unbind()
        jumps = jump.unbind(-2)

        def move(step: int, latent: Tensor, output: Tensor) -> Tensor:
            clean = self._clean(latent, output, levels[step])
            kept = torch.addcmul(jumps[step], latents[step], latent)
            return torch.addcmul(kept, cleans[step], clean)

        return move

    # -- regression of the noise --------------------------------------------------------------

    def noise_level(self, step: Tensor) -> NoiseLevel:
        """``sqrt(abar_n)`` and ``sqrt(1 - abar_n)``, ``[*B, 1]``."""
        level = self.levels[:-1].unsqueeze(-1)[step]
        return NoiseLevel(level.sqrt(), (1 - level).sqrt())

    def output_for_score(self, latent: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """The noise ``-sqrt(1 - abar_n) grad log p_n(x_n)``, ``[*B, A]``."""
        return -self.noise_level(step).std * gradient

    def output_for_noise(
        self, latent: Tensor, clean: Tensor, noise: Tensor, step: Tensor
    ) -> Tensor:
        """The noise itself."""
        return noise

    def bridge_level(self, step: Tensor) -> NoiseLevel:
        """That of :meth:`noise_level`: nothing is left of the action in ``x_0``."""
        return self.noise_level(step)

    def output_for_clean(self, latent: Tensor, clean: Tensor, step: Tensor) -> Tensor:
        """The noise between ``x_N`` and ``x_n``, ``[*B, A]``."""
        signal, std = self.noise_level(step)
        return (latent - signal * clean) / std

    def noise_per_output(self, step: Tensor) -> Tensor:
        """1: the output is the noise."""
        return torch.ones_like(self.noise_level(step).std)

    def extra_repr(self) -> str:
        """Sizes and options for ``print(process)``."""
        return (
            f"action_dim={self.action_dim}, denoising_steps={self.denoising_steps}, "
            f"schedule={self._schedule!r}, variance={self.variance!r}"
        )
