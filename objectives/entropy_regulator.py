"""Noise of acting that follows the entropy of actions."""

import math

import torch
from torch import Tensor, nn

from diffpolicy.errors import ArgumentError
from objectives.bounds import BOUNDS, BoundedCoefficient, bounded_exp
from objectives.temperature import Temperature


class EntropyRegulator(BoundedCoefficient, Temperature):
    """``alpha``, raised while the measured entropy of actions is below its target, else lowered.

    Not the weight of an entropy in the objective, as other temperatures are: alpha scales noise
    (:class:`~diffpolicy.actors.NoisyActor`), which has an effect on the entropy. The loss is
    ``log(alpha) stopgrad(H - H_target)`` (DACER, arXiv 2405.15177). The entropy is measured now and
    then, see :meth:`note`, and stays until the next time; before the first time it counts as on
    target. Measurement and parameter are in the ``state_dict``.

    Args:
        target_entropy: ``H_target``, a total over the action dimensions; published: -0.9 for each.
        initial: initial alpha, within the bounds.
        bounds: smallest and largest alpha.

    Raises:
        ArgumentError: ``initial`` is not within the bounds, ``target_entropy`` is not finite, or
            ``bounds`` are not a positive and a greater finite number.

    Examples:
        >>> regulator = EntropyRegulator(-0.9, initial=3.0)
        >>> regulator.note(torch.tensor(-2.0))
        >>> optimizer = torch.optim.Adam(regulator.parameters(), lr=0.03)
        >>> regulator.loss(regulator.entropy).backward()
        >>> optimizer.step()
        >>> regulator()
        tensor(3.0914)
    """

    learned = True
    log_alpha: nn.Parameter
    entropy: Tensor

    def __init__(
        self,
        target_entropy: float,
        *,
        initial: float = 3.0,
        bounds: tuple[float, float] = BOUNDS,
    ) -> None:
        super().__init__("log_alpha", "initial", initial, bounds)
        if not math.isfinite(target_entropy):
            raise ArgumentError("target_entropy", target_entropy, "must be finite.")
        self.target_entropy = target_entropy
        self.register_buffer("entropy", torch.tensor(float(target_entropy)))

    def note(self, entropy: Tensor) -> None:
        """Keep a measurement, a scalar, for the losses to come; the same one on all ranks."""
        self.entropy.copy_(entropy)

    def loss(self, entropy: Tensor) -> Tensor:
        """``log(alpha) stopgrad(H - H_target)``, in the shape of ``entropy``."""
        excess = entropy.detach() - self.target_entropy
        return bounded_exp(self.log_alpha, excess.mean(), self.bounds).log() * excess
