"""Double precision for identities, and exact expectations over the noise of a chain."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """Build modules and tensors in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def noise_points() -> Callable[[int], Tensor]:
    """The points 0, e_i and -e_i of the noise of a chain with one action dimension."""

    def points(denoising_steps: int) -> Tensor:
        unit = torch.eye(denoising_steps + 1)
        return torch.cat((torch.zeros(1, denoising_steps + 1), unit, -unit)).unsqueeze(-1)

    return points


@pytest.fixture(scope="session")
def expectation() -> Callable[[Tensor], Tensor]:
    """The exact mean over the noise of a quadratic function, from its values at noise_points."""

    def mean(values: Tensor) -> Tensor:
        return values[0] + 0.5 * (values[1:] - values[0]).sum(0)

    return mean
