"""Imports Lightning without ``scipy.signal``, for whoever imports it after this module.

Lightning imports torchmetrics, which gives ``scipy.signal`` an old name back, ``hamming``, for one
of its metrics of speech. Importing it for that takes a seventh of the time in which a run starts.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _stand_in(name: str, attribute: str) -> Iterator[None]:
    """A module with one attribute in place of the real one, unless that has been imported."""
    if name in sys.modules:
        yield
        return
    module = ModuleType(name)
    setattr(module, attribute, None)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


with _stand_in("scipy.signal", "hamming"):
    import lightning  # noqa: F401
