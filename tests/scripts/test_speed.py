"""examples/benchmarks/speed.py: what it counts, and that the page shows what was measured."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("speed")


def test_operations_of_matrix_products_are_those_of_both_passes(speed: Any) -> None:
    layer, rows = torch.nn.Linear(3, 4), torch.rand(5, 3, requires_grad=True)
    with speed.MatrixProducts() as products:
        layer(rows).relu().sum().backward()
    # Forward, and the gradients of weights and rows.
    assert products.operations == 3 * 2 * 5 * 3 * 4


def test_the_table_has_medians_and_ratios_of_the_same_rounds(speed: Any) -> None:
    first = {"program": "A", "cpu_seconds": [1.0, 2.0, 4.0], "wall_seconds": [1.0, 1.0, 1.0]}
    second = {"program": "B", "cpu_seconds": [3.0, 4.0, 4.0], "wall_seconds": [3.0, 3.0, 3.0]}
    table = speed.table({"rows": [first, {**second, "floor_seconds": 1.0}]})
    assert "| A | 2.00 | 1.00 | x 1.00 |  |  |" in table
    assert "| B | 4.00 | 3.00 | x 2.00 | 1.00 | 25% |" in table


def test_the_page_shows_the_measured_tables(speed: Any) -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    results = sorted((FOLDER / "results").glob("speed-*.json"))
    assert results
    for path in results:
        assert speed.table(json.loads(path.read_text(encoding="utf-8"))) in page


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--group on-policy --programs Fast", "--programs has Fast; choose from SB3 PPO, Gaussian"),
        ("--group off-policy --programs SB3~SAC", "leaves nothing to measure without --peers"),
        ("--group on-policy --budgets 4096 2048", "the second of --budgets the larger one"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    speed: Any, words: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        speed.parse([word.replace("~", " ") for word in words.split()])
    assert problem in capsys.readouterr().err
