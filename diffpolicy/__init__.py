"""Diffusion policies for maximum-entropy reinforcement learning.

The package is layered: :mod:`diffpolicy.sde` (plain torch mathematics of the denoising
process), :mod:`diffpolicy.networks` (torch modules), :mod:`diffpolicy.actors` (TensorDict
modules), :mod:`diffpolicy.policy` (trained policies that act) and :mod:`diffpolicy.trainers`
(Lightning, imported only on request). The names of this module are imported when they are used.
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
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """All names, imported or not."""
    return sorted({*globals(), *_LAZY})
