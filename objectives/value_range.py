"""The range of a categorical critic: given, or derived from rewards, and watched."""

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from diffpolicy.networks import CategoricalSupport
from diffpolicy.networks.ranks import max_over_ranks
from objectives.functional import symmetric_value_range

_CHECK_INTERVAL = 256
_CLIPPED_TOO_OFTEN = 0.05
#: What rewards are taken to be bounded by until one differs from zero.
_UNSEEN_REWARD = 1.0


class ValueRange(nn.Module):
    """Sets the atoms of a categorical critic and warns when targets leave their range.

    A range that is derived from rewards spans ``+-margin max|r| / (1 - gamma)``. If none of them
    differs from zero, it starts as for rewards up to 1 and *widens*: whenever a batch holds a
    larger reward than any before, the atoms move outwards, on all ranks alike, and never back. What
    the critic predicts is then read on the wider atoms. This state is in buffers, so that a run
    resumes where it was.

    Args:
        support: the critic's atoms, which stay a part of the critic; None for a scalar critic.
        value_range: ``(minimum, maximum)``, ``"auto"``, or None to leave the atoms as they are.

    Raises:
        ValueError: for anything else, or for a range with a scalar critic.
    """

    derived: Tensor
    widens: Tensor
    margin: Tensor

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
        self._widening = False
        self._calls = 0
        self.register_buffer("derived", torch.tensor(not self._pending))
        self.register_buffer("widens", torch.tensor(False))
        self.register_buffer("margin", torch.tensor(2.0))
        self.register_load_state_dict_post_hook(_follow_state)

    @property
    def support(self) -> CategoricalSupport | None:
        """The atoms of the critic, None for a scalar one."""
        return self._support[0]

    def derive(self, reward: Tensor, gamma: float, margin: float = 2.0) -> float:
        """Let the atoms span ``+-margin max|r| / (1 - gamma)`` and return this bound.

        Without a reward that differs from zero the bound is that of rewards up to 1, with a
        warning, and the range widens from then on. Every rank must call this.

        Raises:
            ValueError: for a scalar critic, or if gamma is not in [0, 1).
        """
        if self.support is None:
            raise ValueError("a value range needs a critic with a CategoricalSupport.")
        bound = float(max_over_ranks(reward.detach().abs().max()))
        limit = symmetric_value_range(bound or _UNSEEN_REWARD, gamma, margin)
        self.support.set_range(-limit, limit)
        self.derived.fill_(True)
        self.widens.fill_(bound == 0)
        self.margin.fill_(margin)
        self._pending, self._widening = False, bound == 0
        if bound == 0:
            warnings.warn(
                f"none of {reward.numel()} rewards differs from zero: the critic's atoms start at "
                f"+-{limit:.4g}, as for rewards up to {_UNSEEN_REWARD:g}, and widen once larger "
                "ones appear. Pass value_range if the range of returns is known.",
                stacklevel=3,
            )
        return limit

    def prepare(self, reward: Tensor, gamma: Tensor) -> None:
        """Derive an outstanding ``"auto"`` range from the first batch, or widen one.

        Args:
            reward: of the batch that is trained on ``[*B, 1]``.
            gamma: discount.
        """
        if self._widening:
            self._widen(reward, gamma)
        if not self._pending:
            return
        limit = self.derive(reward, float(gamma))
        if not self._widening:
            warnings.warn(
                f"value_range='auto': the critic's atoms now span +-{limit:.4g}, derived from the "
                f"{reward.numel()} rewards of the first batch. If rewards grow during training, "
                "call loss.derive_value_range() with more data before, or pass value_range.",
                stacklevel=3,
            )

    @torch.no_grad()
    def _widen(self, reward: Tensor, gamma: Tensor) -> None:
        """Move the atoms outwards if a reward needs it; no look at numbers, so that it compiles."""
        assert self.support is not None  # only derived ranges widen
        atoms, bound = self.support.atoms, max_over_ranks(reward.abs().max())
        limit = (self.margin * bound / (1 - gamma)).to(atoms)
        unit = torch.linspace(-1, 1, len(atoms), dtype=torch.float64, device=atoms.device)
        atoms.copy_(torch.where(limit > atoms[-1], (unit * limit).to(atoms), atoms))

    def watch(self, clip_fraction: Tensor) -> None:
        """Warn, once, if targets leave the range; looks at some calls only, to spare devices.

        A compiled loss cannot warn from inside; call this with the ``value_clip_fraction`` it
        returns, a scalar or one per transition.
        """
        if torch.compiler.is_compiling() or self._calls < 0 or self.support is None:
            return
        self._calls += 1
        if self._calls % _CHECK_INTERVAL:
            return
        clipped = float(clip_fraction.mean())
        if clipped <= _CLIPPED_TOO_OFTEN:
            return
        self._calls = -1
        low, high = float(self.support.atoms[0]), float(self.support.atoms[-1])
        warnings.warn(
            f"{clipped:.0%} of the critics' target probability is outside of the value range "
            f"[{low:.4g}, {high:.4g}] (value_clip_fraction); pass a wider value_range, or rescale "
            "the rewards.",
            stacklevel=2,
        )


def _follow_state(module: ValueRange, incompatible_keys: object) -> None:
    """After loading: whether the range is derived, and widens, is what the state says."""
    module._widening = bool(module.widens)
    module._pending = not bool(module.derived)
