"""The measurement of the entropy bound's gap: known values, its files, and what it shows."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples/benchmarks/entropy_gap.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("entropy_gap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("steps", "gap"), [(4, 0.695), (16, 0.0763), (256, 0.0034)])
def test_exact_reversal_gap(script: ModuleType, steps: int, gap: float) -> None:
    assert script.exact_reversal_gap(steps) == pytest.approx(gap, rel=5e-3, abs=5e-5)


def test_path_weights_average_to_the_normaliser(script: ModuleType) -> None:
    """Before any training, where the bound is nats away."""
    variant = script.Variant("untrained", learned=True, width=4, iterations=0)
    measured = script.measure(script.train(8, variant, seed=0), script.log_normaliser(), 200_000)
    assert measured["gap"] > 5
    assert measured["log_mean_weight"] == pytest.approx(script.log_normaliser(), abs=0.05)


def test_files_hold_every_run(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = {name: script.Variant(name, name == "b", 4, 3) for name in ("a", "b")}
    monkeypatch.setattr(script, "VARIANTS", small)
    script.main(["--steps", "2", "3", "--seeds", "5", "6", "--results", str(tmp_path / "new")])
    results = json.loads((tmp_path / "new" / "entropy_gap.json").read_text())
    cases = [(run["variant"], run["steps"], run["seed"]) for run in results["four_modes"]]
    assert cases == [(name, n, seed) for name in "ab" for n in (2, 3) for seed in (5, 6)]
    assert all(run["gap"] > 0 for run in results["four_modes"])
    assert [row["steps"] for row in results["exact_reversal"]] == [4, 8, 16, 32, 64, 128, 256]
    assert (tmp_path / "new" / "entropy_gap.png").read_bytes().startswith(b"\x89PNG")
    first = [run["gap"] for run in results["four_modes"] if run["variant"] == "a"]
    means = f"| a | {sum(first[:2]) / 2:.2f} | {sum(first[2:]) / 2:.2f} |"
    assert means in capsys.readouterr().out


@pytest.mark.slow
def test_the_bound_tightens_with_more_steps_and_learned_step_sizes(script: ModuleType) -> None:
    """Margins are about half of what was measured: 3.19, 1.89 and 1.53; frozen 4.03."""
    log_z, gaps = script.log_normaliser(), {}
    for steps, name in ((2, "learned"), (8, "learned"), (32, "learned"), (8, "frozen")):
        actor = script.train(steps, script.VARIANTS[name], seed=0)
        measured = script.measure(actor, log_z)
        gaps[steps, name] = measured["gap"]
        assert measured["modes_kept"] == 4
        assert min(measured["mode_shares"]) > 0.2
    assert gaps[2, "learned"] > gaps[8, "learned"] + 0.6
    assert gaps[8, "learned"] > gaps[32, "learned"] + 0.15
    assert gaps[8, "frozen"] > gaps[8, "learned"] + 1.0
    assert gaps[32, "learned"] > 0
