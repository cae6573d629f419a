"""Diffusion policies for maximum-entropy reinforcement learning.

The package is layered: :mod:`diffpolicy.sde` (plain torch mathematics of the denoising
process), :mod:`diffpolicy.networks` (torch modules), :mod:`diffpolicy.actors` (TensorDict
modules) and :mod:`diffpolicy.trainers` (Lightning, imported only on request). A learner of each
method, such as ``diffpolicy.DIME``, is imported when it is used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the learner of a method, which needs torch and Lightning."""
    if name[:1].isupper():
        return _learner(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _learner(name: str) -> Any:
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
