"""The measurement of modes: what it counts, its files, and policies whose modes are known."""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_methods import small_options, words
from tensordict.nn import TensorDictModule

from collectors import optimal_density
from collectors.environments.tasks.multimodal import double_well_reward
from diffpolicy.trainers import METHODS, run_script

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with its folder on the path as it is when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("multimodal", FOLDER / "multimodal.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "multimodal", module)
    spec.loader.exec_module(module)
    return module


def train(method: str, env: str, output: Path) -> str:
    """Train for 16 steps; returns the checkpoint."""
    sizes = {"rollout_steps": 8, "epochs": 1, "eval_episodes": 1, "max_episode_steps": None}
    flags = small_options(METHODS[method], env=env, total_frames=16, output=str(output), **sizes)
    del flags["max_episode_steps"]
    assert run_script(METHODS[method], words(METHODS[method], flags)) == 0
    return str(output / "checkpoints" / "last.ckpt")


def untrained(method: str, path: Path, **options: object) -> str:
    """Save a checkpoint of a module as it is built."""
    config: Any = METHODS[method].config(env="TurningDoubleWell-v0", output=None, **options)
    module = METHODS[method].module(config, torch.device("cpu"))
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def policy(action: object) -> TensorDictModule:
    return TensorDictModule(action, in_keys=["observation"], out_keys=["action"])


def test_trained_runs_on_a_turning_task(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = "TurningDoubleWell-v0"
    runs = [("diffppo", "diffppo-seed3"), ("gaussian_ppo", "ppo-slow-seed0")]
    checkpoints = [train(method, env, tmp_path / name) for method, name in runs]
    capsys.readouterr()
    flags = ["--samples", "50", "--episodes", "2", "--results", str(tmp_path / "results")]
    script.main([*checkpoints, *flags])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == ["| diffppo", "| ppo-slow"]
    folder = tmp_path / "results" / env / "modes"
    for (_, name), row in zip(runs, rows[2:], strict=True):
        content = json.loads((folder / f"{name}.json").read_text())
        histogram = np.array(content["histogram"])
        assert histogram.shape == (8, 2)
        assert (histogram.sum(-1) == 50).all()
        assert content["missed"] == [0] * 8
        kept = (histogram > 50 * 0.1).mean(-1)
        assert content["coverage"] == kept.tolist()
        assert (row[3], row[4]) == (f"{kept.min():.2f}", f"{kept.mean():.2f}")
        assert row[2] == f"{content['return_mean']:.1f}"
        assert content["config"]["output"] == f"runs/benchmarks/{env}/{name}"
    picture = (tmp_path / "results" / f"{env}-modes.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < 200_000


def test_a_trained_run_on_multi_goal(script: ModuleType, tmp_path: Path) -> None:
    checkpoint = train("diffppo", "MultiGoal-v0", tmp_path / "diffppo-seed0")
    flags = ["--samples", "20", "--episodes", "2", "--results", str(tmp_path)]
    script.main([checkpoint, *flags])
    text = (tmp_path / "MultiGoal-v0" / "modes" / "diffppo-seed0.json").read_text()
    content = json.loads(text)
    histogram = np.array(content["histogram"])
    assert histogram.shape == (8, 4)
    assert (histogram.sum(-1) + content["missed"] == 20).all()
    assert content["distance"] is None
    assert (tmp_path / "MultiGoal-v0-modes.png").stat().st_size > 10_000
    script.main([checkpoint, *flags])
    assert (tmp_path / "MultiGoal-v0" / "modes" / "diffppo-seed0.json").read_text() == text


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("diffppo", {"temperature": 0.3}, 0.3),
        ("diffppo", {"temperature": 0.3, "reward_scale": 0.1}, 3.0),
        ("diffsac", {"temperature": 0.3}, 0.3),
        ("diffwpo", {"temperature": 0.3}, 0.3),
        ("dime", {"temperature": 0.3}, 0.3),
        ("sac", {"temperature": 0.3}, 0.3),
        ("sac", {"temperature": 0.3, "learn_temperature": False}, 0.3),
        ("gaussian_wpo", {"temperature": 0.3}, 0.3),
        ("gaussian_ppo", {"entropy_coeff": 0.3}, 0.3),
        ("gaussian_ppo", {}, 0.0),
    ],
)
def test_every_method_is_sampled_at_its_temperature(
    script: ModuleType, tmp_path: Path, method: str, options: dict[str, object], expected: float
) -> None:
    raw = {"normalize_rewards": False} | ({"critic_head": "scalar"} if method == "dime" else {})
    checkpoint = untrained(method, tmp_path / "last.ckpt", **raw, **options)
    measured = script.measure(checkpoint, 20, 1)
    assert measured.temperature == pytest.approx(expected)
    assert measured.samples.shape == (8, 20, 1)
    assert np.unique(measured.samples).size == 8 * 20  # sampled, not the mode
    assert (measured.distance() is None) == (expected == 0)
    assert measured.name == f"{measured.config.method}-seed0"


def test_total_variation_of_known_samples(script: ModuleType) -> None:
    grid = np.linspace(-1, 1, 4001)
    density = optimal_density(double_well_reward, 0.05, grid)
    quantiles = np.interp((np.arange(4000) + 0.5) / 4000, np.cumsum(density) * 5e-4, grid)
    one_well = np.abs(quantiles)
    samples = np.stack((quantiles, one_well))[..., None]
    distance = script.total_variation(samples, grid, density)
    assert distance.tolist() == pytest.approx([0.0, 0.5], abs=0.01)


def test_trajectories_stop_at_goals_and_share_their_starts(script: ModuleType) -> None:
    right = policy(lambda observation: torch.tensor([0.5, 0.0]).expand_as(observation))
    paths, goals = script.sample_trajectories(right, 3)
    assert paths.shape == (8, 3, 51, 2)
    assert (goals == 0).all()
    assert (paths[:, :, 0] == paths[:, :1, 0]).all()
    assert len(np.unique(paths[:, 0, 0], axis=0)) == 8
    distance = np.linalg.norm(paths - [5.0, 0.0], axis=-1)
    assert (distance[..., -1] <= 1).all()
    assert (distance[..., -1] > 0.5 - 1e-9).all()
    still = policy(torch.zeros_like)
    assert (script.sample_trajectories(still, 3)[1] == -1).all()


def test_states_without_a_mode_count_as_not_covered(script: ModuleType) -> None:
    histogram = np.array([[5, 5, 0, 0], [0, 0, 0, 0]])
    config = SimpleNamespace(env="MultiGoal-v0", seed=0)
    run = script.Measured("a-seed0", config, 0.0, [1.0], np.zeros((2, 20, 51, 2)), histogram)
    assert run.modes().coverage.tolist() == [0.5, 0.0]
    assert run.modes().entropy.tolist() == [0.5, 0.0]
    assert run.missed().tolist() == [10, 20]
    assert "| a | 0 | 1.0 | 0.00 | 0.25 | 0.25 | 75% |  |" in script.table([run])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (["--episodes", "-1"], "--episodes must be at least 1, got -1"),
        ([], "No such file or directory: 'missing.ckpt'"),
    ],
)
def test_wrong_flags(
    script: ModuleType, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        script.main(["missing.ckpt", *flags])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_checkpoints_that_do_not_go_together(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = untrained("gaussian_ppo", tmp_path / "last.ckpt")
    flags = ["--samples", "5", "--episodes", "1", "--results", str(tmp_path)]
    with pytest.raises(SystemExit):
        script.main([checkpoint, checkpoint, *flags])
    names = "runs must have different names, got gaussian_ppo-seed0, gaussian_ppo-seed0"
    assert names in capsys.readouterr().err
    assert not (tmp_path / "TurningDoubleWell-v0").exists()
    with pytest.raises(ValueError, match=r"the modes of Pendulum-v1 are not known"):
        script.make_task("Pendulum-v1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", r"last\.ckpt is not a readable checkpoint"),
        ({"state_dict": {}}, r"last\.ckpt is not a checkpoint of a diffpolicy run"),
        (
            {"diffpolicy": {"metadata": {"method": "newer"}}},
            r"last\.ckpt is of newer; known methods: dacer, diffppo, diffsac, diffusion_ql",
        ),
    ],
)
@pytest.mark.parametrize("name", ["acting_modes", "multimodal"])
def test_files_that_hold_no_known_policy(
    name: str,
    content: Any,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    path = tmp_path / "last.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SystemExit) as raised:
        importlib.import_module(name).main([str(path)])
    assert raised.value.code == 2
    output = capsys.readouterr()
    assert re.search(message, output.err)
    assert output.out == ""


def test_a_checkpoint_from_a_gpu_is_loaded_on_the_cpu(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = untrained("gaussian_ppo", tmp_path / "last.ckpt")
    places = []
    read = torch.load

    def recorded(*args: Any, **options: Any) -> Any:
        places.append(options.get("map_location"))
        return read(*args, **options)

    monkeypatch.setattr(torch, "load", recorded)
    name, module = script.load(checkpoint)
    assert name == "gaussian_ppo-seed0"
    assert places == ["cpu"]
    assert {weight.device.type for weight in module.parameters()} == {"cpu"}


def test_the_temperature_is_told_in_the_units_of_the_task(
    script: ModuleType, tmp_path: Path
) -> None:
    checkpoint = train("diffppo", "TurningDoubleWell-v0", tmp_path / "diffppo-seed0")
    _, module = script.load(checkpoint)
    size = float(module.rewards.scale.size)
    assert size > 0
    assert script.measure(checkpoint, 20, 1).temperature == pytest.approx(
        module.config.temperature * size
    )
