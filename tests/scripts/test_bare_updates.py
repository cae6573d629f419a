"""Benchmarks of updates without a trainer: what they count, and the bandit's exact values."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from collectors.environments.tasks.multimodal import multi_well_reward

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_rows_of_an_update_are_those_of_its_formula(script: Any) -> None:
    """DPMD: next actions, K own actions in N steps, K errors; pairs of critics for all of them."""
    cost = script("update_cost").measure("dpmd", "cpu", "Pendulum-v1", updates=1, limit=1.0)
    rows = {name: number / cost["batch_size"] for name, number in cost["rows_per_update"].items()}
    steps, own, pair = cost["denoising_steps"], 8, 2
    assert rows == {
        "policy": steps + own * steps + own,
        "policy_gradient": own,
        "critics": pair * (2 + own),
    }
    assert cost["updates"] == 1
    assert 0 < cost["cpu_seconds_per_update"] < 10


def test_the_exact_values_of_the_bandit_are_its_rewards(script: Any, tmp_path: Path) -> None:
    densities = script("bandit_densities")
    action = torch.linspace(-1, 1, 401, dtype=torch.float64).unsqueeze(-1)
    expected = multi_well_reward(action.squeeze(-1).numpy(), densities.WELLS)
    np.testing.assert_allclose(densities.exact_value(action).squeeze(-1).numpy(), expected)
    densities.main(["--methods", "qsm", "--updates", "2", "--results", str(tmp_path)])
    assert (tmp_path / "bandit-densities.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        densities.main(["--updates", "0", "--results", str(tmp_path)])
