"""Checks at the door: each raises an error that names the argument, its value and what works."""

from collections.abc import Sequence

from torch import Tensor


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        words = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {words}, got {value!r}.")


def check_not_negative(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is zero or more."""
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}.")


def check_positive(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is greater than zero."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def check_known(name: str, keys: Sequence[object], known: Sequence[object]) -> None:
    """Raise a ValueError unless a network's input keys are among the ``known`` ones."""
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ValueError(f"{name} reads {unknown}, but rows hold {list(known)} only.")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise a ValueError that names the tensors if their shapes differ."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes must be equal, got {shapes}.")
