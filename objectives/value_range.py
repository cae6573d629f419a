"""The range of a categorical critic: given, or derived from rewards, and watched."""

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from diffpolicy.networks import CategoricalSupport
from objectives.distributional import symmetric_value_range

_CHECK_INTERVAL = 256
_CLIPPED_TOO_OFTEN = 0.05


class ValueRange(nn.Module):
    """Sets the atoms of a categorical critic and warns when targets leave their range.

    Args:
        support: the critic's atoms, which stay a part of the critic; None for a scalar critic.
        value_range: ``(minimum, maximum)``, ``"auto"``, or None to leave the atoms as they are.

    Raises:
        ValueError: for anything else, or for a range with a scalar critic.
    """

    derived: Tensor

    def __init__(
        self,
        support: CategoricalSupport | None,
        value_range: tuple[float, float] | Literal["auto"] | None,
    ) -> None:
        super().__init__()
        if value_range is not None and support is None:
            raise ValueError(
                f"value_range={value_range!r} needs a categorical critic; leave it out, or give "
                "the critic a CategoricalSupport."
            )
        if isinstance(value_range, str) and value_range != "auto":
            raise ValueError(
                f"value_range must be (minimum, maximum), 'auto' or None, got {value_range!r}."
            )
        # In a tuple, so that the atoms are not registered a second time.
        self._support = (support,)
        if support is not None and isinstance(value_range, tuple):
            support.set_range(*value_range)
        self._pending = value_range == "auto"
        self._calls = 0
        self.register_buffer("derived", torch.tensor(not self._pending))

    @property
    def support(self) -> CategoricalSupport | None:
        """The atoms of the critic, None for a scalar one."""
        return self._support[0]

    def derive(self, reward: Tensor, gamma: float, margin: float = 2.0) -> float:
        """Let the atoms span ``+-margin max|r| / (1 - gamma)`` and return this bound.

        Raises:
            ValueError: for a scalar critic, or if no reward differs from zero.
        """
        if self.support is None:
            raise ValueError("a value range needs a critic with a CategoricalSupport.")
        bound = float(reward.abs().max())
        if bound == 0:
            raise ValueError(
                "the value range cannot be derived from rewards that are all zero; pass "
                "value_range=(minimum, maximum), or derive it from more data."
            )
        limit = symmetric_value_range(bound, gamma, margin)
        self.support.set_range(-limit, limit)
        self.derived.fill_(True)
        self._pending = False
        return limit

    def prepare(self, reward: Tensor, gamma: Tensor) -> None:
        """Derive an outstanding ``"auto"`` range from the first batch, with a warning."""
        if not self._pending:
            return
        self._pending = False
        if bool(self.derived):  # in an earlier run, whose state was loaded
            return
        limit = self.derive(reward, float(gamma))
        warnings.warn(
            f"value_range='auto': the critic's atoms now span +-{limit:.4g}, derived from the "
            f"{reward.numel()} rewards of the first batch. If rewards grow during training, call "
            "loss.derive_value_range() with more data before, or pass value_range.",
            stacklevel=2,
        )

    def watch(self, clip_fraction: Tensor) -> None:
        """Warn, once, if targets leave the range; looks at some calls only, to spare devices.

        A compiled loss cannot warn from inside; call this with the ``clip_fraction`` it returns.
        """
        if torch.compiler.is_compiling() or self._calls < 0 or self.support is None:
            return
        self._calls += 1
        if self._calls % _CHECK_INTERVAL or float(clip_fraction) <= _CLIPPED_TOO_OFTEN:
            return
        self._calls = -1
        low, high = float(self.support.atoms[0]), float(self.support.atoms[-1])
        warnings.warn(
            f"{float(clip_fraction):.0%} of the critics' target probability is outside of the "
            f"value range [{low:.4g}, {high:.4g}] (clip_fraction); pass a wider value_range, or "
            "rescale the rewards.",
            stacklevel=2,
        )
