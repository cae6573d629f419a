"""``diffpolicy demonstrate`` and ``clone``: episodes, a policy fitted to them, runs that go on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_methods import small_config
from tensordict import TensorDictBase

from collectors.streams.demonstrations import episode_returns, load_demonstrations
from diffpolicy import load_policy
from diffpolicy.cli import main
from diffpolicy.errors import ArgumentError
from diffpolicy.networks import RunningNorm
from diffpolicy.trainers import prepare
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.run.clone import Cloning, clone

TASK = "Pendulum-v1"
TEACHER = "pretrained:sac-Pendulum-v1"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of a good policy and three of a disturbed one, each of 25 steps."""
    folder = tmp_path_factory.mktemp("data") / "demos"
    words = ["--episodes", "3", "--noise", "0", "0.5", "--max-episode-steps", "25"]
    assert main(["demonstrate", TEACHER, *words, "--output", str(folder)]) == 0
    return folder


def cloned(output: Path, demos: Path, name: str = "diffppo", **options: Any) -> Any:
    settings = {k: options.pop(k) for k in ("updates", "clip_actions") if k in options}
    config = small_config(name, output=str(output), **options)
    data = load_demonstrations(demos)
    return clone(config, data, Cloning(**{"updates": 20, "batch_size": 32, **settings}))


def test_demonstrations_are_transitions_of_whole_episodes(demos: Path) -> None:
    data = load_demonstrations(demos)
    assert data.batch_size == (150,)
    assert len(episode_returns(data)) == 6
    assert data["episode"].unique().tolist() == [0, 1, 2, 3, 4, 5]
    inside = ~data["next", "done"].squeeze(-1)
    following = data["observation"].roll(-1, 0)
    assert torch.equal(data["next", "observation"][inside], following[inside])
    assert bool((data["action"].abs() <= 2).all())
    assert int(data["next", "truncated"].sum()) == 6
    policy = load_policy(TEACHER)
    expected = torch.from_numpy(policy.act(data["observation"].numpy()))
    torch.testing.assert_close(data["action"][:75], expected[:75])
    shift = (data["action"] - expected)[75:].std()
    assert shift > 0.3


def test_demonstrations_repeat_and_folders_are_new(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["--episodes", "3", "--noise", "0", "0.5", "--max-episode-steps", "25"]
    assert main(["demonstrate", TEACHER, *again, "--output", str(tmp_path / "again")]) == 0
    assert torch.equal(load_demonstrations(tmp_path / "again")["action"], actions(demos))
    capsys.readouterr()
    for words, message in (
        ([TEACHER, "--output", str(demos)], f"--output {demos} exists"),
        (["pretrained:none", "--output", "x"], "policy pretrained:none does not come"),
        ([TEACHER, "--episodes", "0", "--output", "x"], "--episodes must be at least 1"),
        ([TEACHER, "--noise", "-1", "--output", "x"], "--noise must be at least 0"),
        ([TEACHER, "--env", "Reacher-v5", "--output", "x"], "--env Reacher-v5 takes the actions"),
        ([TEACHER, "--env", "No-v1", "--output", "x"], "--env No-v1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["demonstrate", *words])
        assert message in capsys.readouterr().err


def actions(demos: Path) -> torch.Tensor:
    return load_demonstrations(demos)["action"]


def test_a_clone_is_a_run(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bc"
    config = tmp_path / "options.yaml"
    config.write_text("actor_hidden_sizes: [16]\nmax_episode_steps: 25\nlogger: [csv]\n")
    words = ["--config", str(config), "--updates", "30", "--eval-episodes", "2"]
    assert main(["clone", str(demos), "--env", TASK, *words, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "150 transitions, 6 episodes: return" in said
    assert "update 30 of 30: loss" in said
    assert f"--init-from {output}" in said
    results = json.loads((output / "results.json").read_text())
    assert (results["method"], results["env_steps"]) == ("diffppo", 0)
    assert results["gradient_steps"] == 30
    policy = load_policy(output)
    assert policy.training["gradient_steps"] == 30
    assert main(["eval", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["return_mean"] == pytest.approx(results["evaluations"][0]["return_mean"])
    started = ["train", "diffppo", "--config", str(config), "--env", TASK, "--seed", "3"]
    small = ["--num-envs", "2", "--rollout-steps", "25", "--total-frames", "50"]
    small += ["--eval-episodes", "2"]
    begun = [*started, *small, "--init-from", str(output), "--output", str(tmp_path / "ft")]
    assert main(begun) == 0
    first = json.loads((tmp_path / "ft" / "results.json").read_text())["evaluations"][0]
    assert first["return_mean"] == pytest.approx(found["return_mean"])
    with pytest.raises(SystemExit, match="2"):
        main([*started, "--resume", str(output / "checkpoints" / "last.ckpt")])
    assert "is a policy that was cloned" in capsys.readouterr().err


def test_histories_and_chunks_are_cloned_and_demonstrated(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "options.yaml"
    config.write_text("actor_hidden_sizes: [8]\nmax_episode_steps: 25\neval_episodes: 2\n")
    windows = ["--frame-stack", "2", "--action-chunk", "3"]
    first, data = str(tmp_path / "first"), tmp_path / "data"
    fit = ["--env", TASK, "--config", str(config), *windows, "--updates", "4"]
    assert main(["clone", str(demos), *fit, "--output", first]) == 0
    assert f"{' '.join(windows)} --init-from {first}" in capsys.readouterr().out
    # What it demonstrates are single steps, of which the same can be cloned again.
    assert main(["demonstrate", first, "--episodes", "2", "--output", str(data)]) == 0
    found = load_demonstrations(data)
    assert (found["observation"].shape, found["action"].shape) == ((50, 3), (50, 1))
    same = {"frame_stack": 2, "action_chunk": 3}
    cloned(tmp_path / "second", data, updates=2, **same)
    begun = {"init_from": str(tmp_path / "second"), "output": str(tmp_path / "ft")}
    assert prepare(small_config("diffppo", **begun, **same)).module.warm_parts == ("actor",)
    for name, flag, there in (
        ("action_chunk", "--action-chunk", 3),
        ("frame_stack", "--frame-stack", 2),
    ):
        with pytest.raises(ArgumentError, match=f"has 1; give {flag} {there}"):
            prepare(small_config("diffppo", **begun, **{**same, name: 1}))


@pytest.mark.parametrize("name", ["diffppo", "diffsac", "dime"])
def test_a_run_begins_with_the_clone_and_critics_of_its_own(
    name: str, demos: Path, tmp_path: Path
) -> None:
    cloned(tmp_path / "bc", demos, name)
    theirs = Checkpoint.of_run(tmp_path / "bc", "run").content["state_dict"]
    module = prepare(small_config(name, seed=9, init_from=str(tmp_path / "bc"))).module
    fresh = prepare(small_config(name, seed=9)).module.state_dict()
    assert module.warm_parts == ("actor",)
    for key, value in module.state_dict().items():
        from_clone = key.startswith("loss.actor_network_params.") or ".normalizer." in key
        assert torch.equal(value, (theirs if from_clone else fresh)[key]), key


def test_the_seed_decides_and_statistics_are_those_of_the_data(demos: Path, tmp_path: Path) -> None:
    states = []
    for index, seed in enumerate((1, 1, 2)):
        cloned(tmp_path / str(index), demos, seed=seed)
        states.append(Checkpoint.of_run(tmp_path / str(index), "run").content["state_dict"])
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    last = "loss.actor_network_params.score_network.net.2.weight"
    assert not torch.equal(states[0][last], states[2][last])
    norm = RunningNorm(3)
    norm.update(load_demonstrations(demos)["observation"])
    kept = "loss.actor_network_params.score_network.normalizer.mean"
    assert torch.equal(states[0][kept], norm.mean)


def changed(demos: Path, **entries: Any) -> TensorDictBase:
    data = load_demonstrations(demos).clone()
    for key, value in entries.items():
        data.set(key, value)
    return data


def test_data_that_does_not_fit_is_refused_before_anything_is_written(
    demos: Path, tmp_path: Path
) -> None:
    rows = len(load_demonstrations(demos))
    far, nan = 3 * torch.ones(rows, 1), torch.full((rows, 3), torch.nan)
    for data, words in (
        (changed(demos).exclude("observation"), "lacks 'observation', .* holds action, done"),
        (changed(demos, action=torch.zeros(rows, 2)), r"has actions \[2\], and .* \[1\]"),
        (changed(demos, action=far), r".* from 3 to 3, 100\.0% of them outside .*--clip-actions"),
        (changed(demos, observation=nan), "has NaN or infinity in 'observation'"),
        (changed(demos, observation=torch.zeros(rows, 4)), r"has observations .*\[4\].* not read"),
    ):
        with pytest.raises(ArgumentError, match=f"data='demos' {words}"):
            clone(small_config("diffppo", output=str(tmp_path / "x")), data, Cloning(), "demos")
    config = small_config("sac", output=str(tmp_path / "x"))
    with pytest.raises(ArgumentError, match="method='sac' has no chain; choose"):
        clone(config, changed(demos), Cloning())
    config = small_config("diffppo", output=str(tmp_path / "x"), action_chunk=2)
    endless = changed(demos).select("observation", "action")
    with pytest.raises(ArgumentError, match="data='demos' does not say where episodes end"):
        clone(config, endless, Cloning(), "demos")
    assert not (tmp_path / "x").exists()
    clipped = small_config("diffppo", output=str(tmp_path / "x"))
    clone(clipped, changed(demos, action=far), Cloning(updates=2, clip_actions=True))
    with pytest.raises(ValueError, match="already holds a run"):
        clone(clipped, changed(demos), Cloning())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "--env is missing"),
        (["x", "--env", TASK, "--method", "dim"], "--method dim does not exist; did you mean dime"),
        (["nowhere", "--env", TASK], "data nowhere does not exist"),
        (["x", "--env", TASK, "--updates", "0"], "--updates 0 must be at least 1"),
        (["x", "--env", TASK, "--lr", "0"], "--lr 0.0 must be above 0"),
        (["x", "--env", TASK, "--eval-episodes", "0"], "--eval-episodes must be at least 1"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["clone", *words])
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
