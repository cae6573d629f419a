"""Data sets of demonstrations: which are read, and what is said about others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorDictReplayBuffer, TensorStorage
from torchrl.data.datasets import LeRobotExperienceReplay

from collectors.streams import demonstrations
from collectors.streams.demonstrations import Loader, episode_returns, load_demonstrations
from diffpolicy.errors import ArgumentError


def data_set() -> TensorDictBase:
    """Two episodes of three steps, with the rewards 1 and 2."""
    done = torch.tensor([[0], [0], [1], [0], [0], [1]], dtype=torch.bool)
    following = {"reward": torch.tensor([[1.0], [1], [1], [2], [2], [2]]), "done": done}
    content = {"observation": torch.randn(6, 3), "action": torch.rand(6, 2), "next": following}
    return TensorDict(content, [6], names=None).auto_batch_size_(1)


def test_all_formats_hold_the_same(tmp_path: Path) -> None:
    data = data_set()
    data.memmap(tmp_path / "folder")
    torch.save(data.to_dict(), tmp_path / "file.pt")
    flat = {"next.reward": data["next", "reward"], "next.done": data["next", "done"]}
    arrays = {**{k: data[k] for k in ("observation", "action")}, **flat}
    np.savez(tmp_path / "file.npz", **{k: v.numpy() for k, v in arrays.items()})
    for name in ("folder", "file.pt", "file.npz"):
        found = load_demonstrations(tmp_path / name)
        assert found.batch_size == (6,)
        for key in ("observation", "action", ("next", "reward"), ("next", "done")):
            assert torch.equal(found[key], data[key]), (name, key)
        assert episode_returns(found) == [3.0, 6.0]


def test_a_replay_buffer_of_torchrl_reads_the_folder(tmp_path: Path) -> None:
    data_set().memmap(tmp_path / "demos")
    storage = TensorStorage(TensorDict.load_memmap(tmp_path / "demos"))
    sample = TensorDictReplayBuffer(storage=storage, batch_size=4).sample()
    assert sample["next", "reward"].shape == (4, 1)


def test_returns_need_rewards_and_ends() -> None:
    data = data_set()
    assert episode_returns(data.exclude(("next", "done"))) == []
    assert episode_returns(data[:5]) == [3.0]  # the second episode has not ended
    assert episode_returns(data[:2]) == []


def test_loaders_of_torchrl_are_named_by_their_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_set()
    asked: list[str] = []

    def load(name: str) -> TensorDictBase:
        asked.append(name)
        return data

    monkeypatch.setitem(demonstrations.LOADERS, "minari", Loader(load, (), "minari"))
    assert load_demonstrations("minari:mujoco/hopper/medium-v0") is data
    assert asked == ["mujoco/hopper/medium-v0"]

    def broken(name: str) -> TensorDictBase:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(demonstrations.LOADERS, "minari", Loader(broken, (), "minari"))
    with pytest.raises(ArgumentError, match="cannot be loaded: ConnectionError: no route to host"):
        load_demonstrations("minari:x")


def test_rows_of_torchrl_loaders_are_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot's columns become a data set as the loader of a name gives it."""
    columns = {
        "observation.state": torch.randn(8, 3),
        "action": torch.rand(8, 2),
        "episode_index": torch.arange(2).repeat_interleave(4),
        "task": ["push"] * 8,
    }

    def loaded(name: str, **options: Any) -> Any:
        del options["decode_video"]
        return LeRobotExperienceReplay.from_columns(columns, **options)

    monkeypatch.setattr("torchrl.data.datasets.LeRobotExperienceReplay", loaded)
    loader = demonstrations.LOADERS["lerobot"]._replace(needs=())
    monkeypatch.setitem(demonstrations.LOADERS, "lerobot", loader)
    data = load_demonstrations("lerobot:somebody/push")
    assert torch.equal(data["action"], columns["action"])
    assert torch.equal(data["observation", "state"], columns["observation.state"])
    assert episode_returns(data) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = demonstrations.LOADERS["minari"]._replace(needs=("no_such_package",))
    monkeypatch.setitem(demonstrations.LOADERS, "minari", loader)
    words = r"data='minari:x' needs no_such_package: pip install 'minari\[hf,hdf5\]'\."
    with pytest.raises(ArgumentError, match=words):
        load_demonstrations("minari:x")


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    data = data_set()
    data.exclude("action").memmap(tmp_path / "actionless")
    data.reshape(2, 3).memmap(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("nothing")
    (tmp_path / "text.npz").write_text("nothing")
    torch.save({"actions": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    np.savez(tmp_path / "other.npz", observation=np.zeros(2))
    torch.save({"action": torch.zeros(2, 1), "observation": torch.zeros(3, 1)}, tmp_path / "odd.pt")
    for name, words in {
        "nowhere": r"does not exist; give a folder, .* or minari:NAME or lerobot:NAME",
        "empty": "without a data set: there is no meta.json",
        "actionless": "has no action; it holds next.done, next.reward, observation",
        "two": r"must have one batch dimension with rows, got \[2, 3\]",
        "text.pt": "is not readable",
        "text.npz": "is not readable",
        "other.pt": "there is no action in it, but actions",
        "tensor.pt": "it holds Tensor",
        "other.npz": "there is no action in it, but observation",
        "odd.pt": "is not readable",
    }.items():
        with pytest.raises(ArgumentError, match=f"data='.*{name}' .*{words}"):
            load_demonstrations(tmp_path / name)
