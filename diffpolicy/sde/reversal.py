"""Scores that reverse a noising with a linear drift, as targets of a regression."""

from abc import abstractmethod

from torch import Tensor

from diffpolicy.sde.base import ProcessModule
from diffpolicy.sde.bridge import bridge_levels, bridge_mean
from diffpolicy.sde.protocol import NoiseLevel, accumulated_noise


class ReversedNoising(ProcessModule):
    """What the score of a :class:`~diffpolicy.sde.DenoisingProcess` is when it undoes the noising.

    Arguments and errors are those of :class:`ProcessModule`.
    """

    #: ``k``.
    noise_scale: Tensor

    @abstractmethod
    def step_sizes(self) -> Tensor:
        """``eta_n`` ``[N, A]``."""

    @abstractmethod
    def contraction(self, step_size: Tensor) -> Tensor:
        """By what a step shrinks a latent, in the shape of ``step_size``."""

    @abstractmethod
    def noising_steps(self) -> tuple[Tensor, Tensor]:
        """Contraction and variance of the noising steps ``[N, A]``."""

    def noise_level(self, step: Tensor) -> NoiseLevel:
        """``x_n = signal x_N + std eps`` of latents that are noised to ``step``, ``[*B, A]``."""
        signal, std = accumulated_noise(*self.noising_steps())
        return NoiseLevel(signal[step], std[step])

    def bridge_level(self, step: Tensor) -> NoiseLevel:
        """``x_n = signal x_N + std eps`` of chains whose ``x_0`` is drawn from the prior."""
        signal, std = bridge_levels(*self.noising_steps(), self.prior_std)
        return NoiseLevel(signal[step], std[step])

    def output_for_score(self, latent: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """The score with which the denoising kernel reverses the noising one.

        The reversal of a diffusion (Anderson 1982) drifts by ``x / nu^2 + 2 k^2 grad log p_n(x)``;
        the denoising kernel has ``-x / nu^2 + score``.

        Args:
            latent: ``x_n`` ``[*B, A]``.
            gradient: ``grad log p_n(x_n)``, of the density of noised latents ``[*B, A]``.
            step: ``n``, integer tensor ``[*B]``.
        """
        pull = self.noise_scale.square() * gradient
        return 2 * (latent / self.prior_std.square() + pull)

    def output_for_noise(
        self, latent: Tensor, clean: Tensor, noise: Tensor, step: Tensor
    ) -> Tensor:
        """The score that reverses the noising of one latent.

        ``2 (x_n / nu^2 - k^2 eps / std_n)``.

        Args:
            latent: ``x_n = signal_n x_N + std_n eps`` ``[*B, A]``.
            clean: ``x_N`` ``[*B, A]``.
            noise: eps ``[*B, A]``.
            step: ``n``, integer tensor ``[*B]``.
        """
        return self.output_for_score(latent, -noise / self.noise_level(step).std, step)

    def output_for_clean(self, latent: Tensor, clean: Tensor, step: Tensor) -> Tensor:
        """The score whose denoising kernel has the mean of ``p(x_{n+1} | x_n, x_N)``.

        Exact for steps of any size, see :func:`~diffpolicy.sde.bridge.bridge_mean`;
        :meth:`output_for_noise`, with the same arguments, is what it comes to for small ones.
        """
        mean = bridge_mean(*self.noising_steps(), latent, clean, step)
        step_size = self.step_sizes()[step]
        return (mean - self.contraction(step_size) * latent) / step_size

    def noise_per_output(self, step: Tensor) -> Tensor:
        """By how much eps changes with the score ``[*B, A]``: ``std_n / (2 k^2)``."""
        return 0.5 * self.noise_level(step).std / self.noise_scale.square()
