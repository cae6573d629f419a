"""Learned coefficients at their bounds: the metric that shows it, and the warning."""

import torch
from torchrl.objectives import LossModule, SACLoss

from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.io.console import warn
from objectives import EntropyRegulator, LearnedMultiplier, LearnedTemperature
from objectives.bounds import BOUNDS, BoundedCoefficient

# What it means, by the metric and the end at which the coefficient is. A multiplier that falls
# to its smallest value belongs to a constraint that does not matter, which is no fault.
_MEANING = {
    ("alpha", 1): (
        "the entropy stays below --target-entropy {config.target_entropy} although the temperature "
        f"has reached its largest value, {BOUNDS[1]:g}: the target cannot be reached; give a lower "
        "--target-entropy, or a fixed temperature."
    ),
    ("alpha", -1): (
        "the entropy stays above --target-entropy {config.target_entropy} although the temperature "
        f"has reached its smallest value, {BOUNDS[0]:g}; give a higher --target-entropy, or a "
        "fixed temperature."
    ),
    ("multiplier", 1): (
        "the policy moves further than --kl-bound {config.kl_bound} although the weight of the "
        f"trust region has reached its largest value, {BOUNDS[1]:g}; give a greater --kl-bound, or "
        "a smaller --lr."
    ),
}


class BoundWatch:
    """Tells of the learned temperature and multiplier of a loss when they are at a bound.

    Args:
        loss: the loss; TorchRL's SACLoss has a temperature of its own.
        config: its options, for the words of the warning.
    """

    def __init__(self, loss: LossModule, config: RunConfig) -> None:
        self._loss = loss
        self._config = config
        self._warned: set[tuple[str, int]] = set()

    def metrics(self) -> dict[str, float]:
        """1 for each coefficient at its largest value, -1 at its smallest one, else 0."""
        return {f"{name}_at_bound": float(end) for name, end in self._ends().items()}

    def warn(self) -> None:
        """Print one line for each bound that was reached, the first time; for rank zero."""
        for reached in self._ends().items():
            if reached in _MEANING and reached not in self._warned:
                self._warned.add(reached)
                warn(_MEANING[reached].format(config=self._config))

    def _ends(self) -> dict[str, int]:
        if isinstance(self._loss, SACLoss):
            return {} if self._loss.fixed_alpha else {"alpha": _end_of_sac(self._loss)}
        names: dict[type[BoundedCoefficient], str] = {
            EntropyRegulator: "alpha",
            LearnedTemperature: "alpha",
            LearnedMultiplier: "multiplier",
        }
        return {
            names[type(module)]: module.at_bound()
            for module in self._loss.modules()
            if isinstance(module, BoundedCoefficient)
        }


@torch.no_grad()
def _end_of_sac(loss: SACLoss) -> int:
    # It moves a temperature back between its bounds when it is called the next time.
    low, high = loss.log_alpha <= loss.min_log_alpha, loss.log_alpha >= loss.max_log_alpha
    return int(high) - int(low)
