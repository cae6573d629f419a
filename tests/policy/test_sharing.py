"""Saved and shared policies act as before; nothing here needs the internet."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import COMMIT, Hub

from diffpolicy import Policy, load_policy, pretrained
from diffpolicy.errors import ArgumentError
from diffpolicy.files import read_plain, write_plain
from diffpolicy.trainers import METHODS, RLModule

ROOT = Path(__file__).resolve().parents[2]
Runs = dict[str, Path]
OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_policy_acts_as_before(name: str, runs: Runs, tmp_path: Path) -> None:
    policy = load_policy(runs[name])
    if name in ("dime", "diffppo"):
        policy.denoising_steps = 5
    folder = policy.save_pretrained(tmp_path / "shared" / name)
    assert {path.name for path in folder.iterdir()} >= {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    for again in (load_policy(folder), Policy.from_pretrained(folder)):
        assert again.denoising_steps == policy.denoising_steps
        np.testing.assert_array_equal(again.act(OBSERVATIONS), policy.act(OBSERVATIONS))
        samples = [p.seed(1).act(OBSERVATIONS, False) for p in (again, policy)]
        np.testing.assert_array_equal(*samples)
        # A checkpoint keeps tuples, JSON makes lists of them.
        assert json.dumps(again.training["config"]) == json.dumps(
            {k: v for k, v in policy.training["config"].items() if k not in ("output", "resume")}
        )


def test_dictionaries_are_shared_too(
    robot: str,
    make_module: Callable[..., RLModule],
    write_run: Callable[[RLModule, Path], Path],
    tmp_path: Path,
) -> None:
    policy = load_policy(write_run(make_module("gaussian_ppo", env=robot), tmp_path / "run"))
    again = load_policy(policy.save_pretrained(tmp_path / "shared"))
    assert [e.space.shape for e in again.entries] == [e.space.shape for e in policy.entries]
    assert again.actions.space == policy.actions.space
    observation = {entry.name: entry.space.sample() for entry in policy.entries}
    for entry in policy.entries:
        if entry.name == "gear":
            assert again.entries[1].space == entry.space
    observation["body.speed"], observation["target"] = np.ones(3), np.ones((2, 2))
    np.testing.assert_array_equal(again.act(observation), policy.act(observation))


def test_the_model_card(runs: Runs, tmp_path: Path) -> None:
    content = read_plain(runs["dime"] / "checkpoints" / "last.ckpt")
    state = content["diffpolicy"]
    state["frames"] = 300
    state["config"]["output"] = "/home/somebody/runs"
    state["evaluations"] = [
        {"env_steps": s, "return_mean": -3.0 * s, "return_std": 1.5, "episodes": 10}
        for s in range(0, 301, 3)
    ]
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    write_plain(run / "checkpoints" / "last.ckpt", content)
    (run / "returns.png").write_bytes(b"picture")
    folder = load_policy(run).save_pretrained(tmp_path / "shared", license="mit")
    card = (folder / "README.md").read_text()
    start = card.split("---\n")[1]
    assert 'license: "mit"' in start
    index = json.loads(re.search(r"model-index: (.*)", start)[1])  # type: ignore[index]
    (result,) = index[0]["results"]
    assert result["dataset"]["name"] == "Pendulum-v1"
    assert result["metrics"][0]["value"] == "-900.00 +/- 1.50"
    assert "# dime on Pendulum-v1" in card
    assert "Return after 300 environment steps: **-900.00 +/- 1.50**" in card
    rows = re.findall(r"\| \d+ \| -?[\d.]+ \+/- 1.50 \|", card)
    assert len(rows) == 20
    assert rows[-1].startswith("| 300 |")
    assert re.search(r"\| seed \| 0 \|", card)
    assert re.search(r"\| torch \| \d", card)
    assert "![" in card
    assert (folder / "returns.png").read_bytes() == b"picture"
    # The folders of a machine are nobody's business.
    assert "somebody" not in card + (folder / "config.json").read_text()


def test_a_policy_that_nothing_is_known_of(runs: Runs, tmp_path: Path) -> None:
    known = load_policy(runs["sac"])
    policy = Policy(known.spec, known.state_dict())
    card = (policy.save_pretrained(tmp_path / "shared") / "README.md").read_text()
    assert card.count("Nothing is known.") == 2
    assert "model-index" not in card
    assert load_policy(tmp_path / "shared").training == {}


def test_folders_that_are_something_else(runs: Runs, tmp_path: Path) -> None:
    policy = load_policy(runs["sac"])
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(ArgumentError, match="holds a run"):
        policy.save_pretrained(run)
    with pytest.raises(ArgumentError, match="is a file"):
        policy.save_pretrained(run / "config.json")
    # Saving once more replaces the policy.
    folder = policy.save_pretrained(tmp_path / "shared")
    load_policy(runs["dime"]).save_pretrained(folder)
    assert load_policy(folder).training["method"] == "dime"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2, and this version reads 1"),
        ({"library_name": "other"}, "is not one of diffpolicy"),
        ({"policy": {}}, "is not a policy that this version reads"),
    ],
)
def test_folders_of_other_versions(
    change: dict[str, Any], words: str, runs: Runs, tmp_path: Path
) -> None:
    folder = load_policy(runs["sac"]).save_pretrained(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ArgumentError, match=words):
        load_policy(folder)


def test_damaged_parameters(runs: Runs, tmp_path: Path) -> None:
    folder = load_policy(runs["sac"]).save_pretrained(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ArgumentError, match="is not a policy that this version reads"):
        load_policy(folder)


# ---------------------------------------------------------------------------------------
# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, which huggingface_hub takes for the real one."""
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "token-of-the-test")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_push_and_pull(hub: Hub, runs: Runs) -> None:
    policy = load_policy(runs["dime"])
    address = policy.push_to_hub("me/my-policy", license="mit")
    assert address == f"{hub.url}/me/my-policy/commit/{COMMIT}"
    assert {"README.md", "config.json", "model.safetensors"} <= hub.repositories[
        "me/my-policy"
    ].keys()
    again = load_policy("me/my-policy", denoising_steps=3)
    assert again.denoising_steps == 3
    again.denoising_steps = 2
    np.testing.assert_array_equal(again.act(OBSERVATIONS), policy.act(OBSERVATIONS))
    assert "GET /me/my-policy/resolve/" in " ".join(hub.requests)
    # The second time all comes from the cache.
    before = len([r for r in hub.requests if r.startswith("GET /me/")])
    Policy.from_pretrained("me/my-policy", revision="main")
    assert len([r for r in hub.requests if r.startswith("GET /me/")]) == before


def test_what_the_hub_does_not_have(hub: Hub, runs: Runs) -> None:
    with pytest.raises(ArgumentError, match="source='me/absent' is not on the hub, or private"):
        load_policy("me/absent")
    hub.repositories["me/other"] = {"README.md": b"something else"}
    with pytest.raises(ArgumentError, match=r"is a repository without model\.safetensors"):
        load_policy("me/other")
    with pytest.raises(ArgumentError, match="repo_id='me/a b' is no name of a repository"):
        load_policy(runs["sac"]).push_to_hub("me/a b")


def test_no_way_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: Runs) -> None:
    from huggingface_hub import constants

    # Nobody listens there.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArgumentError, match="cannot be reached on the hub"):
        load_policy("me/policy")
    with pytest.raises(ArgumentError, match="cannot be reached on the hub"):
        load_policy(runs["sac"]).push_to_hub("me/policy")


def test_a_path_with_a_typing_error_is_not_looked_up(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ArgumentError, match="is neither a file nor a folder"):
        load_policy("runs/dime")
    assert hub.requests == []


def test_without_the_extra_package(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ArgumentError, match=r"pip install 'diffpolicy\[hub\]'"):
        load_policy("me/policy")
    with pytest.raises(ArgumentError, match=r"pip install 'diffpolicy\[hub\]'"):
        load_policy(runs["sac"]).push_to_hub("me/policy")


# ---------------------------------------------------------------------------------------
# Policies that come with the package


@pytest.mark.parametrize("name", pretrained())
def test_a_policy_of_the_package(name: str) -> None:
    policy = load_policy(f"pretrained:{name}")
    observation = {e.name: np.zeros(e.space.shape) for e in policy.entries}
    assert policy.act(observation) in policy.actions.space
    assert name == f"{policy.training['method']}-{policy.training['env']}"
    assert policy.training["evaluations"][-1]["env_steps"] == policy.training["env_steps"]
    folder = ROOT / "diffpolicy" / "pretrained" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000


def test_a_policy_that_the_package_does_not_have() -> None:
    name = pretrained()[0]
    with pytest.raises(ArgumentError, match=rf"did you mean pretrained:{name}\?"):
        load_policy(f"pretrained:{name.lower()[:-1]}")
    with pytest.raises(ArgumentError, match=rf"There are: .*{name}"):
        load_policy("pretrained:zzz")
