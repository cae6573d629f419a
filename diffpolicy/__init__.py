"""Diffusion policies for maximum-entropy reinforcement learning.

The package is layered: :mod:`diffpolicy.sde` (plain torch mathematics of the denoising
process), :mod:`diffpolicy.networks` (torch modules), :mod:`diffpolicy.actors` (TensorDict
modules), :mod:`diffpolicy.policy` (trained policies that act) and :mod:`diffpolicy.trainers`
(Lightning, imported only on request). The names of this module are imported when they are used;
among them is a learner of each method, such as ``diffpolicy.DIME``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffpolicy.policy import ExportError, Policy, load_policy, pretrained

__version__ = "0.1.0"
__all__ = ["ExportError", "Policy", "__version__", "load_policy", "pretrained"]

_LAZY = dict.fromkeys(("ExportError", "Policy", "load_policy", "pretrained"), "diffpolicy.policy")


def __getattr__(name: str) -> Any:
    """Import one of the names above, which needs torch."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name[:1].isupper():
        return _learner(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _learner(name: str) -> Any:
    """The learner of a method, which needs Lightning as well."""
    from diffpolicy.errors import check_not_hidden, did_you_mean, how_to_install

    check_not_hidden()
    try:
        learners = import_module("diffpolicy.trainers").LEARNERS
    except ImportError as error:
        line = how_to_install(error)
        if line is None:
            raise
        raise ImportError(f"diffpolicy.{name}: {line}") from error
    if name in learners:
        return learners[name]
    advice = did_you_mean(name, learners, f"there are {', '.join(learners)}.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {advice}")


def __dir__() -> list[str]:
    """All names, imported or not."""
    return sorted({*globals(), *_LAZY})
