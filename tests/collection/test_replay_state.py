"""A restored replay buffer stores and draws on as the saved one does, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import ListStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import prioritized as torchrl_samplers

from collectors import (
    UnsupportedStateError,
    load_replay_state,
    make_replay_buffer,
    replay_state,
)


def rows(count: int, start: int = 0) -> TensorDict:
    numbers = torch.arange(start, start + count, dtype=torch.float32).unsqueeze(-1)
    return TensorDict(
        {
            "observation": numbers * torch.ones(3),
            "half": numbers.to(torch.bfloat16),
            "next": {"reward": -numbers, "terminated": numbers % 2 == 0},
        },
        [count],
    )


def through_a_file(state: Any, path: Path, mmap: bool = False) -> Any:
    torch.save(state, path)
    return torch.load(path, weights_only=True, mmap=mmap)


def assert_same_draws(first: TensorDictReplayBuffer, second: TensorDictReplayBuffer) -> None:
    ours, theirs = first.sample(), second.sample()
    assert set(ours.keys(True, True)) == set(theirs.keys(True, True))
    for key in ours.keys(True, True):
        assert ours[key].dtype == theirs[key].dtype
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize("stored", [0, 1, 7, 10, 24])
def test_it_stores_and_draws_on(stored: int, storage: str, tmp_path: Path) -> None:
    first = make_replay_buffer(10, batch_size=32, seed=0, storage=storage)
    for start in range(stored):
        first.extend(rows(1, start))
    if stored:
        first.sample()
    other = "disk" if storage == "memory" else "memory"
    state = through_a_file(replay_state(first), tmp_path / "state", mmap=True)
    for kind in (storage, other):
        second = make_replay_buffer(10, batch_size=32, seed=1, storage=kind)
        load_replay_state(second, state)
        assert len(second) == len(first) == min(stored, 10)
        assert second.writer._write_count == stored
        draws = replay_state(first)["generator"]
        for start in (50, 54, 58):
            for each in (first, second):
                each.extend(rows(4, start))
            assert_same_draws(first, second)
        # back to where it was, for the other kind
        first = make_replay_buffer(10, batch_size=32, seed=0, storage=storage)
        load_replay_state(first, state)
        assert torch.equal(first._rng.get_state(), draws)


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_only_rows_in_use_are_written_and_none_are_copied(storage: str, tmp_path: Path) -> None:
    buffer = make_replay_buffer(100_000, batch_size=32, seed=0, storage=storage)
    buffer.extend(rows(1000))
    state = replay_state(buffer)
    for path, saved in state["rows"]:
        assert saved.data_ptr() == buffer.storage._storage[tuple(path)].data_ptr()
        assert type(saved) is torch.Tensor
    torch.save(state, tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 60_000  # 27 bytes a row


def test_a_state_outlives_its_file_and_the_buffer_of_its_rows(tmp_path: Path) -> None:
    first = make_replay_buffer(10, batch_size=32, seed=0)
    first.extend(rows(5))
    second = make_replay_buffer(10, batch_size=32, seed=0)
    load_replay_state(second, replay_state(first))
    first.extend(rows(5, 90))
    first.storage._storage.zero_()
    assert second.storage[:]["observation"][:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_bad_buffers_are_refused_before_anything_is_stored() -> None:
    first = make_replay_buffer(10, batch_size=2, seed=0)
    first.extend(rows(4))
    state = replay_state(first)
    small = make_replay_buffer(9, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="capacity 9, but the saved one had 10; build it"):
        load_replay_state(small, state)
    assert len(small) == 0
    with pytest.raises(ValueError, match="buffer must be empty, got one of 4 rows; build a new"):
        load_replay_state(first, state)
    with pytest.raises(ValueError, match="prioritized=False, but the saved one had True; build it"):
        load_replay_state(
            make_replay_buffer(10, batch_size=2, seed=0), state | {"priorities": {"leaves": []}}
        )
    strange = TensorDictReplayBuffer(storage=ListStorage(10), batch_size=2)
    with pytest.raises(UnsupportedStateError, match="ListStorage cannot be saved; build it with"):
        replay_state(strange)


class Tree:
    """Stands for the segment trees of TorchRL's compiled extension, which need not load here."""

    def __init__(self, capacity: int) -> None:
        self.leaves = torch.full((capacity,), float(self.neutral))

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        return self.leaves[index]

    def __setitem__(self, index: torch.Tensor, value: torch.Tensor) -> None:
        self.leaves[index] = value

    def query(self, start: int, stop: int) -> float:
        return float(self.reduce(self.leaves[start:stop]))

    def scan_lower_bound(self, mass: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.leaves.cumsum(0), mass)


class SumTree(Tree):
    neutral, reduce = 0.0, staticmethod(torch.sum)


class MinTree(Tree):
    neutral, reduce = float("inf"), staticmethod(torch.min)


@pytest.mark.parametrize("stored", [0, 6, 30])
def test_priorities(stored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("Fp32", "Fp64"):
        monkeypatch.setattr(torchrl_samplers, f"SumSegmentTree{size}", SumTree)
        monkeypatch.setattr(torchrl_samplers, f"MinSegmentTree{size}", MinTree)
    first, second = (
        make_replay_buffer(10, batch_size=32, seed=seed, prioritized=True) for seed in (0, 1)
    )

    def use(buffer: TensorDictReplayBuffer) -> None:
        batch = buffer.sample()
        batch["td_error"] = batch["observation"][:, 0] % 7
        buffer.update_tensordict_priority(batch)

    for start in range(stored):
        first.extend(rows(1, start))
        use(first)
    load_replay_state(second, through_a_file(replay_state(first), tmp_path / "state"))
    for start in (50, 51, 52):
        for each in (first, second):
            each.extend(rows(1, start))
        assert_same_draws(first, second)
        use(first)
        use(second)
    assert first.sampler._max_priority == second.sampler._max_priority


def anonymous_memory() -> int:
    """Mebibytes of this process that are not those of files."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_rows_of_a_disk_do_not_fill_the_memory(tmp_path: Path) -> None:
    first, second = (
        make_replay_buffer(80_000, batch_size=8, seed=seed, storage="disk") for seed in (0, 1)
    )
    for chunk in range(6):
        first.extend(TensorDict({"observation": torch.full((10_000, 100), chunk)}, [10_000]))
    before = anonymous_memory()
    state = replay_state(first)
    torch.save(state, tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True, mmap=True)
    load_replay_state(second, saved)
    assert anonymous_memory() - before < 15  # of 46 MiB
    assert_same_draws(first, second)
