"""``diffpolicy offline``: the networks of a method fitted to a data set, and runs that go on."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import random_transitions
from small_methods import small_config

from diffpolicy import load_policy
from diffpolicy.cli import main
from diffpolicy.errors import ArgumentError
from diffpolicy.policy.demonstrations import save_demonstrations
from diffpolicy.trainers import OfflineTraining, prepare, train_offline
from diffpolicy.trainers.io.checkpoint import Checkpoint

TASK = "Pendulum-v1"
SMALL = ["--actor-hidden-sizes", "8", "--critic-hidden-sizes", "8", "--batch-size", "16"]
SMALL += ["--max-episode-steps", "20", "--eval-episodes", "2", "--logger", "csv"]


def trained(output: Path, name: str, **options: Any) -> dict[str, torch.Tensor]:
    """The networks after some updates."""
    config = small_config(name, output=str(output), **options)
    training = OfflineTraining(updates=12, evaluations=1)
    train_offline(config, random_transitions(), training)
    return Checkpoint.of_run(output, "run").content["state_dict"]


def test_an_offline_run_is_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_demonstrations(random_transitions(), tmp_path / "demos")
    output = tmp_path / "ql"
    words = ["--env", TASK, *SMALL, "--updates", "30", "--evaluations", "3"]
    assert main(["offline", str(data), *words, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "60 transitions, 3 episodes: return" in said
    assert "update 20 of 30: return" in said
    assert f"train diffusion_ql --env {TASK} --init-from {output}" in said
    results = json.loads((output / "results.json").read_text())
    assert (results["method"], results["env_steps"]) == ("diffusion_ql", 0)
    assert results["gradient_steps"] == 30
    rows = list(csv.DictReader((output / "metrics.csv").read_text().splitlines()))
    assert [row["gradient_steps"] for row in rows] == ["10", "20", "30"]
    assert float(rows[0]["loss_qvalue"]) > 0
    assert load_policy(output).training["gradient_steps"] == 30
    assert main(["eval", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["return_mean"] == pytest.approx(results["evaluations"][-1]["return_mean"])
    with pytest.raises(SystemExit, match="2"):
        main(["train", "diffusion_ql", "--resume", str(output / "checkpoints" / "last.ckpt")])
    assert "is a policy that was trained offline" in capsys.readouterr().err


def test_offline_policies_see_histories_and_plan(tmp_path: Path) -> None:
    options = {"frame_stack": 2, "action_chunk": 2}
    trained(tmp_path / "run", "diffusion_ql", **options)
    policy = load_policy(tmp_path / "run")
    action = policy.act(np.zeros(3, np.float32))
    assert action.shape == (1,)
    assert policy.planned is not None
    assert policy.planned.shape == (2, 1)
    assert Checkpoint.of_run(tmp_path / "run", "run").state["offline"]["transitions"] == 60


@pytest.mark.parametrize("name", ["diffsac", "dipo"])
def test_networks_move_alike_and_a_run_begins_with_all_of_them(name: str, tmp_path: Path) -> None:
    fresh = prepare(small_config(name)).module.state_dict()
    first, again = (trained(tmp_path / str(index), name) for index in range(2))
    for key, value in first.items():
        assert torch.equal(value, again[key]), key
    for part in ("actor_network_params", "qvalue_network_params"):
        moved = [k for k in first if f"loss.{part}" in k and not torch.equal(first[k], fresh[k])]
        assert moved, part
    module = prepare(small_config(name, seed=9, init_from=str(tmp_path / "0"))).module
    assert module.warm_parts == ("actor", "critic")
    for key, value in module.state_dict().items():
        if "network_params" in key or key.startswith("rewards."):
            assert torch.equal(value, first[key]), key
    assert float(first["rewards.scale.size"]) > 0


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = random_transitions(), str(tmp_path / "run")
    with pytest.raises(ArgumentError, match="method='diffppo' learns from its own rollouts"):
        train_offline(small_config("diffppo", output=output), data, OfflineTraining())
    with pytest.raises(ArgumentError, match="policy_starts=10 is not supported by offline"):
        train_offline(small_config("dime", policy_starts=10), data, OfflineTraining())
    far = data.clone().set("action", 3 * torch.ones(60, 1))
    with pytest.raises(ArgumentError, match=r"100\.0% of them outside .*--clip-actions"):
        train_offline(small_config("dime", output=output), far, OfflineTraining())
    assert not Path(output).exists()
    for words, message in (
        (["--env", TASK, "demos"], "DATA comes first, before --env"),
        (["demos"], "--env is missing"),
        (["demos", "--env", TASK, "--method", "dim"], "did you mean dime"),
        (["demos", "--env", TASK, "--updates", "0"], "--updates 0 must be at least 1"),
        (["demos", "--env", TASK, "--updates", "3"], "--evaluations 5 must be between 1 and the 3"),
        (["demos", "--env", TASK, "--lr-actr", "1"], "did you mean --lr-actor"),
        (["nowhere", "--env", TASK], "data nowhere does not exist"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["offline", *words])
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
