"""A small run that the tests of commands read."""

from pathlib import Path

import pytest
from small_methods import small_words

from diffpolicy.cli import main


@pytest.fixture(scope="session")
def dime_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of DIME on Pendulum, 120 environment steps long."""
    folder = tmp_path_factory.mktemp("runs") / "dime"
    words = small_words("dime", checkpoint_every=40, eval_every=40)
    assert main(["train", "dime", *words, "--output", str(folder)]) == 0
    return folder
