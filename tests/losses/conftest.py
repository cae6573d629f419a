"""Makes the builders and the registry in ``support/`` importable, and runs tests per loss case."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))
pytest.register_assert_rewrite("loss_builders", "loss_registry", "denoising_oracle", "rowwise")


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``case`` runs for every registered case of every loss."""
    if "case" in metafunc.fixturenames:
        from loss_registry import EACH_CASE

        if not any(
            "case" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
        ):
            metafunc.parametrize("case", EACH_CASE)
