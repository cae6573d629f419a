"""Checks at the door: each raises an error that names the argument, its value and what works."""

from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase
from torch import Tensor


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        words = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {words}, got {value!r}.")


def check_positive(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is greater than zero."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def require(tensordict: TensorDictBase, key: NestedKey, name: str, hint: str) -> Tensor:
    """The entry ``key``, or a KeyError that names it, what is there, and what would help."""
    value = tensordict.get(key, None)
    if value is None:
        raise KeyError(
            f"{name} key {key!r} is missing from the TensorDict, which has "
            f"{sorted(map(str, tensordict.keys(True, True)))}; {hint}"
        )
    return value
