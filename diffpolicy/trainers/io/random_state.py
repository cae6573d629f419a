"""The global random state of a process as plain data: torch, numpy and Python."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all global generators that a run on ``device`` may draw from."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if on_gpu else None,
        "numpy": [
            str(name),
            np.asarray(keys).tolist(),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": random.getstate(),
    }


def load_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set all global generators to a state from :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    random.setstate(state["python"])


def seed_random_state(seed: int) -> None:
    """Seed all global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- environments may draw from it
    random.seed(seed)


@contextmanager
def restored_random_state() -> Iterator[None]:
    """Leave the generators of numpy and Python as they were before."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
