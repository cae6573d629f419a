"""The examples without Lightning and those of the benchmarks, run in this process."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from small_methods import DIFFUSION, EACH, small_options, words
from torch import nn

from diffpolicy.trainers import METHODS
from objectives import DiffPPOLoss

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def folder_of_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python looks for the modules beside a script that it runs."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_loop_learns_inverted_pendulum(capsys: pytest.CaptureFixture[str]) -> None:
    # An untrained policy keeps the pole up for about 25 steps.
    assert load("plain_loop.py").main(["--total-frames", "15360"]) > 100
    assert "15360 frames" in capsys.readouterr().out


@pytest.mark.slow
def test_custom_actors_learn_inverted_pendulum() -> None:
    results = load("custom_actor.py").main(["--total-frames", "10240"])
    assert set(results) == {"own score network", "own actor"}
    assert min(results.values()) > 40


def test_an_unsuitable_actor_is_told_what_it_must_offer() -> None:
    with pytest.raises(TypeError, match="must offer the members of diffpolicy"):
        DiffPPOLoss(nn.Linear(1, 1), nn.Linear(1, 1))


@pytest.mark.parametrize("method", EACH)
def test_every_method_of_the_benchmarks_leaves_results_and_acts(
    method: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = load("benchmarks/run.py")
    options = small_options(METHODS[method], max_episode_steps=10, eval_episodes=1)
    del options["env"]
    flags = words(METHODS[method], options)
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    args, rest = run.parser().parse_known_args(
        ["--method", method, "--env", "Pendulum-v1", *places, *flags]
    )
    assert rest == flags
    assert run.run_seed(3, args, rest) == 0
    content = json.loads((tmp_path / f"results/Pendulum-v1/{method}-seed3.json").read_text())
    assert content["method"] == method
    assert (content["seed"], content["env_steps"]) == (3, 120)
    # Nothing of this machine is kept.
    assert content["config"]["output"] == f"runs/benchmarks/Pendulum-v1/{method}-seed3"
    assert str(tmp_path) not in json.dumps(content)

    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    capsys.readouterr()
    checkpoint = str(tmp_path / f"runs/Pendulum-v1/{method}-seed3/checkpoints/last.ckpt")
    load("benchmarks/acting_modes.py").main([checkpoint, "--episodes", "1"])
    cells = capsys.readouterr().out.splitlines()[-1].strip("|").split("|")
    returns = [float(cell) for cell in cells[1:] if cell.strip()]
    # A Gaussian has one step without noise, a diffusion policy three.
    assert len(returns) == (4 if method in DIFFUSION else 2)
    # 10 steps of -17 at worst.
    assert all(-170 < value < 0 for value in returns)


def write_results(
    folder: Path, method: str, finals: list[float], eval_policy: str = "deterministic"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, final in enumerate(finals):
        evaluations = [
            {"env_steps": 0, "return_mean": 0.0},
            {"env_steps": 100, "return_mean": final},
        ]
        content = {
            "config": {"eval_policy": eval_policy},
            "evaluations": evaluations,
            "gradient_steps": 50,
        }
        (folder / f"{method}-seed{seed}.json").write_text(json.dumps(content))


def test_the_report_has_mean_and_interquartile_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = load("benchmarks/report.py")
    write_results(tmp_path / "dmc-cheetah-run", "sac", [1, 2, 3, 4, 100])
    write_results(tmp_path / "dmc-cheetah-run", "diffsac", [5, 6, 7], "stochastic")
    write_results(tmp_path / "dmc-cheetah-run", "wpo", [5, 6, 7, 10])
    argv = ["--env", "dmc:cheetah-run", "--results", str(tmp_path)]
    report.main(argv)
    table = capsys.readouterr().out
    assert (tmp_path / "dmc-cheetah-run.png").stat().st_size > 10_000
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()}
    # The interquartile mean of five leaves out the smallest and the largest.
    assert "| deterministic | 100 | 50 | 22 | 3 | 2 to 68 |" in rows["Gaussian SAC"]
    assert "| 1 | 100 | 1, 2, 3, 4, 100 |" in rows["Gaussian SAC"]
    assert "| deterministic | 100 | 50 | 7 | 6 | 5 to " in rows["Gaussian WPO"]
    # Of three it would leave out none.
    expected = "| DiffSAC | sampled | 100 | 50 | 6 | \N{EN DASH} | \N{EN DASH} | 5 | 7 | 5, 6, 7 |"
    assert rows["DiffSAC"] == expected
    assert len({line.count("|") for line in rows.values()}) == 1
    report.main(argv)
    assert capsys.readouterr().out == table


def test_a_report_compares_seeds_where_all_were_evaluated(tmp_path: Path) -> None:
    report = load("benchmarks/report.py")
    folder = tmp_path / "Some-v0"
    write_results(folder, "sac", [1, 2])
    path = folder / "sac-seed1.json"
    results = json.loads(path.read_text())
    evaluations = results["evaluations"]
    results["evaluations"] = [evaluations[0], {**evaluations[0], "env_steps": 50}, evaluations[-1]]
    path.write_text(json.dumps(results))
    curve = report.load_curves(folder)["sac"]
    assert curve.steps.tolist() == [evaluation["env_steps"] for evaluation in evaluations]
    assert curve.returns.shape == (2, len(evaluations))
    assert curve.returns[1, -1] == evaluations[-1]["return_mean"]


def test_a_report_needs_results_at_the_same_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = load("benchmarks/report.py")
    with pytest.raises(SystemExit):
        report.main(["--env", "Nothing-v0", "--results", str(tmp_path)])
    assert "run examples/benchmarks/run.py first" in capsys.readouterr().err
    write_results(tmp_path / "Some-v0", "sac", [1, 2])
    path = tmp_path / "Some-v0" / "sac-seed1.json"
    path.write_text(path.read_text().replace("100", "200"))
    with pytest.raises(SystemExit):
        report.main(["--env", "Some-v0", "--results", str(tmp_path)])
    assert "ended at different steps" in capsys.readouterr().err


def test_a_report_does_not_mix_ways_of_acting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = load("benchmarks/report.py")
    folder = tmp_path / "Some-v0"
    write_results(folder, "sac", [1, 2])
    path = folder / "sac-seed1.json"
    content = path.read_text()
    path.write_text(content.replace("deterministic", "stochastic"))
    with pytest.raises(ValueError, match=r"the seeds of sac in .* partly with sampled"):
        report.load_curves(folder)
    path.write_text(content.replace("deterministic", "greedy"))
    with pytest.raises(ValueError, match=r"config\.eval_policy in .*sac-seed1.* got 'greedy'"):
        report.load_curves(folder)
    path.write_text(content.replace("eval_policy", "policy"))
    with pytest.raises(SystemExit):
        report.main(["--env", "Some-v0", "--results", str(tmp_path)])
    assert "must be one of deterministic, stochastic, got None" in capsys.readouterr().err
    assert not (tmp_path / "Some-v0.png").exists()
