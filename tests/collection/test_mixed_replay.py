"""Samples of replay with a share of demonstrations."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from collectors import MixedReplay, load_replay_state, make_replay_buffer, replay_state
from collectors.streams.replay import give_back
from diffpolicy.errors import ArgumentError


def numbered(count: int, start: float = 0.0) -> TensorDict:
    numbers = torch.arange(count).unsqueeze(-1) + start
    return TensorDict({"observation": numbers, "next": {"reward": -numbers}}, [count])


def filled(batch_size: int = 8) -> TensorDictReplayBuffer:
    buffer = make_replay_buffer(100, batch_size=batch_size, seed=3)
    buffer.extend(numbered(30))
    return buffer


def test_each_sample_has_its_share_and_every_row_comes() -> None:
    mixed = MixedReplay(filled(), numbered(5, start=1000), fraction=0.25)
    seen = set()
    for _ in range(60):
        batch = mixed.sample()
        assert batch.batch_size == (8,)
        assert batch["demonstrated"].flatten().tolist() == [False] * 6 + [True] * 2
        assert torch.equal(batch["demonstrated"], batch["observation"] >= 1000)
        assert torch.equal(batch["next", "reward"], -batch["observation"])
        seen |= set(batch["observation"].flatten().tolist())
    assert seen == {*range(30), *range(1000, 1005)}


def test_the_state_of_the_buffer_is_all_that_samples_depend_on() -> None:
    buffer = filled()
    mixed = MixedReplay(buffer, numbered(5, start=1000))
    mixed.sample()
    state = replay_state(buffer)
    state["generator"] = state["generator"].clone()
    expected = [mixed.sample()["observation"] for _ in range(3)]
    again = make_replay_buffer(100, batch_size=8, seed=9)
    load_replay_state(again, state)
    other = MixedReplay(again, numbered(5, start=1000))
    assert all(torch.equal(other.sample()["observation"], batch) for batch in expected)


def test_a_buffer_of_torchrl_and_entries_that_are_added() -> None:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(50), batch_size=4)
    rows = numbered(10)
    buffer.extend(rows.set("latent", torch.zeros(10, 2)))
    shown = numbered(5, start=1000)
    with pytest.raises(KeyError, match="latent"):
        MixedReplay(buffer, shown).sample()
    mixed = MixedReplay(buffer, shown, complete=lambda rows: rows.set("latent", torch.ones(2, 2)))
    assert mixed.sample()["latent"].tolist() == [[0.0, 0.0]] * 2 + [[1.0, 1.0]] * 2


def test_demonstrations_stay_as_they_are() -> None:
    buffer, shown = filled(), numbered(5, start=1000)
    mixed = MixedReplay(buffer, shown, fraction=0.5)
    batch = mixed.sample()
    replayed = batch["observation"][:4].clone()
    batch["observation"] += 0.5
    give_back(buffer, batch, ["observation"])
    assert torch.equal(shown["observation"], numbered(5, start=1000)["observation"])
    changed = buffer[:]["observation"] - numbered(30)["observation"]
    assert set(changed.nonzero()[:, 0].tolist()) == set(replayed.flatten().int().tolist())


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.99, 1.0])
def test_a_share_leaves_some_of_both(fraction: float) -> None:
    with pytest.raises(ArgumentError, match=r"fraction=.* is [08] of 8 transitions"):
        MixedReplay(filled(), numbered(5), fraction=fraction)
