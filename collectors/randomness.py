"""The global generators of a process: those of torch, NumPy and Python.

Policies draw their noise from them, and so do environments that do not use a generator of their
own. What must not depend on anything else draws from a :class:`RandomStream`.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from collectors.seeding import derive_seed


class RandomStream:
    """Global generators of one's own: swapped in for a while, and the others back afterwards.

    Inside, whatever draws from a global generator gets the numbers of this stream, in the order in
    which it asks; outside, nobody notices::

        stream = RandomStream(seed=0)
        with stream:
            env.rollout(100, policy)

    Args:
        seed: non-negative integer.
        devices: CUDA devices whose generators belong to it, too.
    """

    def __init__(self, seed: int, devices: Sequence[torch.device] = ()) -> None:
        self._devices = list(devices)
        self._state = {
            "torch": torch.Generator().manual_seed(seed).get_state(),
            "cuda": [torch.Generator(d).manual_seed(seed).get_state() for d in self._devices],
            # Streams of the same seed would be the same: torch and NumPy have one algorithm.
            "numpy": np.random.RandomState(derive_seed(seed, 1)).get_state(),
            "python": random.Random(derive_seed(seed, 2)).getstate(),
        }

    def enter(self) -> None:
        """Swap this stream in, as ``with`` does; a hook of TorchRL's collectors."""
        self._swap()

    def leave(self, rollout: object = None) -> None:
        """Swap the other generators in again; the other hook."""
        self._swap()

    def __enter__(self) -> Self:
        """Swap this stream in."""
        self._swap()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Swap the other generators in again."""
        self._swap()

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream while it is not swapped in, as plain data."""
        return _plain(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._state = _from_plain(state_dict)

    def _swap(self) -> None:
        current = _read(self._devices)
        _write(self._state, self._devices)
        self._state = current


def random_state(devices: Sequence[torch.device] = ()) -> dict[str, Any]:
    """Return the state of the global generators, and of those of CUDA devices, as plain data."""
    return _plain(_read(devices))


def load_random_state(state: dict[str, Any], devices: Sequence[torch.device] = ()) -> None:
    """Set the global generators to a state from :func:`random_state`."""
    _write(_from_plain(state), devices)


@contextmanager
def restored_random_state(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Leave the global generators, and those of CUDA devices, as they were before."""
    before = _read(devices)
    try:
        yield
    finally:
        _write(before, devices)


def seed_random_state(seed: int) -> None:
    """Seed all global generators, those of CUDA devices, too."""
    torch.manual_seed(seed)
    np.random.seed(derive_seed(seed, 1))  # noqa: NPY002
    random.seed(derive_seed(seed, 2))


def _read(devices: Sequence[torch.device]) -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in devices],
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }


def _write(state: dict[str, Any], devices: Sequence[torch.device]) -> None:
    torch.set_rng_state(state["torch"])
    # A state of a run on another number of devices has fewer, or more.
    for device, generator in zip(devices, state["cuda"], strict=False):
        torch.cuda.set_rng_state(generator, device)
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = state["numpy"]
    numpy = [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)]
    return {
        "torch": state["torch"].clone(),
        "cuda": [generator.clone() for generator in state["cuda"]],
        "numpy": numpy,
        "python": state["python"],
    }


def _from_plain(state: dict[str, Any]) -> dict[str, Any]:
    version, keys, gauss = state["python"]
    return {
        "torch": state["torch"].clone(),
        "cuda": [generator.clone() for generator in state["cuda"]],
        "numpy": tuple(state["numpy"]),
        # Files turn tuples into lists.
        "python": (version, tuple(keys), gauss),
    }
