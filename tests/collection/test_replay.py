import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    PrioritizedSampler,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)

import collectors
from collectors import make_replay_buffer


def extension_loads() -> bool:
    try:
        PrioritizedSampler(1, alpha=1.0, beta=1.0)
    except RuntimeError:
        return False
    return True


def rows(count: int, start: int = 0) -> TensorDict:
    numbers = torch.arange(start, start + count, dtype=torch.float32).unsqueeze(-1)
    return TensorDict(
        {"observation": numbers, "next": {"reward": -numbers, "terminated": numbers % 2 == 0}},
        [count],
    )


def drawn(buffer: TensorDictReplayBuffer, samples: int) -> torch.Tensor:
    return torch.cat([buffer.sample()["observation"] for _ in range(samples)]).flatten()


@pytest.mark.parametrize("storage", ["memory", "disk"])
class TestStorages:
    def test_samples_are_the_stored_rows(self, storage: str) -> None:
        buffer = make_replay_buffer(100, batch_size=64, seed=0, storage=storage)
        buffer.extend(rows(30))
        batch = buffer.sample()
        assert batch.batch_size == (64,)
        assert batch.device == torch.device("cpu")
        assert torch.equal(batch["next", "reward"], -batch["observation"])
        assert torch.equal(batch["next", "terminated"], batch["observation"] % 2 == 0)
        assert torch.equal(batch["index"], batch["observation"].flatten().int())
        assert set(drawn(buffer, 20).tolist()) == set(range(30))

    def test_the_oldest_rows_make_room(self, storage: str) -> None:
        buffer = make_replay_buffer(10, batch_size=64, seed=0, storage=storage)
        for start in range(0, 24, 4):
            buffer.extend(rows(4, start))
        assert len(buffer) == 10
        assert set(drawn(buffer, 20).tolist()) == set(range(14, 24))

    def test_draws_follow_the_seed_and_not_the_global_random_state(self, storage: str) -> None:
        results = []
        for seed, global_seed in [(0, 0), (0, 99), (1, 0)]:
            torch.manual_seed(global_seed)
            np.random.seed(global_seed)  # noqa: NPY002
            buffer = make_replay_buffer(100, batch_size=8, seed=seed, storage=storage)
            buffer.extend(rows(50))
            results.append(drawn(buffer, 3))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_storing_and_sampling_leave_the_global_random_state_alone(self, storage: str) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        buffer = make_replay_buffer(100, batch_size=8, seed=0, storage=storage)
        buffer.extend(rows(50))
        drawn(buffer, 3)
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002

    def test_draws_are_uniform(self, storage: str) -> None:
        buffer = make_replay_buffer(10, batch_size=1000, seed=0, storage=storage)
        buffer.extend(rows(10))
        counts = torch.bincount(drawn(buffer, 10).long(), minlength=10)
        # five standard deviations of a binomial count
        assert (counts - 1000).abs().max() < 5 * (10_000 * 0.1 * 0.9) ** 0.5

    def test_a_restored_buffer_draws_on(self, storage: str, tmp_path: Path) -> None:
        buffer = make_replay_buffer(100, batch_size=8, seed=0, storage=storage)
        buffer.extend(rows(50))
        drawn(buffer, 3)
        buffer.dumps(tmp_path / "saved")
        expected = drawn(buffer, 3)
        restored = make_replay_buffer(100, batch_size=8, seed=1, storage=storage)
        restored.loads(tmp_path / "saved")
        assert torch.equal(drawn(restored, 3), expected)
        for each in (buffer, restored):
            each.extend(rows(60, 50))
        assert torch.equal(drawn(restored, 3), drawn(buffer, 3))

    def test_samples_go_to_the_device(self, storage: str) -> None:
        buffer = make_replay_buffer(100, batch_size=8, seed=0, storage=storage, device="meta")
        buffer.extend(rows(50))
        batch = buffer.sample()
        assert {value.device.type for value in batch.values(True, True)} == {"meta"}
        assert buffer.storage.device == torch.device("cpu")

    def test_an_empty_buffer_cannot_be_sampled(self, storage: str) -> None:
        with pytest.raises(RuntimeError, match="empty storage"):
            make_replay_buffer(100, batch_size=8, seed=0, storage=storage).sample()


class TestFiles:
    def test_the_default_is_in_memory(self) -> None:
        buffer = make_replay_buffer(100, batch_size=8, seed=0)
        assert type(buffer.storage) is LazyTensorStorage

    def test_temporary_files_are_removed_with_the_buffer(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        buffer = make_replay_buffer(1000, batch_size=8, seed=0, storage="disk")
        buffer.extend(rows(50))
        assert type(buffer.storage) is LazyMemmapStorage
        (directory,) = tmp_path.iterdir()
        sizes = {file.stem: file.stat().st_size for file in directory.rglob("*.memmap")}
        # all rows have their place on the disk, beside the index that TorchRL keeps with them
        assert sizes == {"observation": 4000, "reward": 4000, "terminated": 1000, "index": 8000}
        del buffer
        gc.collect()
        assert list(tmp_path.iterdir()) == []

    def test_files_in_a_named_directory_stay(self, tmp_path: Path) -> None:
        buffer = make_replay_buffer(
            1000, batch_size=8, seed=0, storage="disk", scratch_dir=tmp_path / "new" / "buffer"
        )
        buffer.extend(rows(50))
        del buffer
        gc.collect()
        assert (tmp_path / "new" / "buffer" / "observation.memmap").stat().st_size == 4000

    def test_two_buffers_cannot_share_a_directory(self, tmp_path: Path) -> None:
        buffer = make_replay_buffer(
            100, batch_size=8, seed=0, storage="disk", scratch_dir=str(tmp_path)
        )
        buffer.extend(rows(50))
        with pytest.raises(ValueError, match=r"scratch_dir=.*is not an empty directory.*new one"):
            make_replay_buffer(100, batch_size=8, seed=0, storage="disk", scratch_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity must be .* at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be .* at least 1, got 0"),
        ({"seed": -1}, "seed=-1 must be a non-negative integer"),
        ({"storage": "tape"}, "storage must be 'memory' or 'disk', got 'tape'"),
        ({"scratch_dir": "x"}, "scratch_dir='x' is only used by storage='disk'"),
        ({"alpha": -0.1}, "alpha must be a finite number of at least 0, got -0.1"),
        ({"beta": float("nan")}, "beta must be a finite number of at least 0, got nan"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_replay_buffer(**({"capacity": 10, "batch_size": 2, "seed": 0} | arguments))


@pytest.mark.skipif(extension_loads(), reason="torchrl's compiled extension loads here")
def test_priorities_without_the_extension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prioritized=True needs .* with torch .*; leave it out"):
        make_replay_buffer(10, batch_size=2, seed=0, prioritized=True)


@pytest.mark.skipif(
    not extension_loads(), reason="torchrl's compiled extension does not load with this torch"
)
@pytest.mark.parametrize("storage", ["memory", "disk"])
class TestPriorities:
    def make(self, storage: str, **options: object) -> TensorDictReplayBuffer:
        buffer = make_replay_buffer(
            100,
            **({"batch_size": 500, "seed": 0, "prioritized": True, "storage": storage} | options),
        )
        assert isinstance(buffer, TensorDictPrioritizedReplayBuffer)
        buffer.extend(rows(4))
        return buffer

    def test_draws_follow_the_priorities(self, storage: str) -> None:
        buffer = self.make(storage, alpha=1.0, beta=1.0)
        first = buffer.sample()
        assert (torch.bincount(first["index"].long(), minlength=4) > 90).all()
        first["td_error"] = first["observation"]  # the priority of row n is n
        buffer.update_tensordict_priority(first)
        batch = buffer.sample()
        counts = torch.bincount(batch["index"].long(), minlength=4)
        assert counts[0] == 0
        assert (counts - torch.tensor([0, 500 / 6, 500 / 3, 500 / 2])).abs().max() < 60
        # the weights make up for it: draws times weight are even
        weights = torch.stack([batch["priority_weight"][batch["index"] == i][0] for i in (1, 2, 3)])
        torch.testing.assert_close(weights * torch.tensor([1.0, 2, 3]), weights[:1].expand(3))

    def test_alpha_zero_is_uniform(self, storage: str) -> None:
        buffer = self.make(storage, alpha=0.0)
        batch = buffer.sample()
        batch["td_error"] = batch["observation"]
        buffer.update_tensordict_priority(batch)
        assert (torch.bincount(buffer.sample()["index"].long(), minlength=4) > 90).all()

    def test_priorities_have_their_own_key(self, storage: str) -> None:
        buffer = self.make(storage, priority_key=("loss", "error"))
        batch = buffer.sample()
        batch["loss", "error"] = (batch["observation"] == 2).float()
        buffer.update_tensordict_priority(batch)
        assert (buffer.sample()["index"] == 2).all()

    def test_draws_follow_the_seed_and_not_the_global_random_state(self, storage: str) -> None:
        results = []
        for seed, global_seed in [(0, 0), (0, 99), (1, 0)]:
            torch.manual_seed(global_seed)
            np.random.seed(global_seed)  # noqa: NPY002
            before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
            results.append(drawn(self.make(storage, seed=seed), 3))
            assert torch.equal(before[0], torch.get_rng_state())
            assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])


MILLION = """
import resource, sys
import torch
from tensordict import TensorDict
from collectors import make_replay_buffer

buffer = make_replay_buffer(1_000_000, batch_size=256, seed=0, storage=sys.argv[1])
rows = TensorDict(
    {
        "observation": torch.randn(1000, 17),
        "action": torch.rand(1000, 6),
        "next": {
            "observation": torch.randn(1000, 17),
            "reward": torch.randn(1000, 1),
            "terminated": torch.zeros(1000, 1, dtype=torch.bool),
        },
    },
    [1000],
)
for chunk in range(1000):
    rows["next", "reward"].fill_(chunk)
    buffer.extend(rows.copy())
assert len(buffer) == 1_000_000
seen = torch.cat([buffer.sample()["next", "reward"] for _ in range(1000)])
assert len(seen.unique()) == 1000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_million_transitions_fit_into_memory(storage: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MILLION, storage],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=Path(collectors.__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1", "RL_LOGGING_LEVEL": "ERROR"},
    )
    mebibytes = int(result.stdout)
    print(f"{storage}: {mebibytes} MiB at most")
    assert mebibytes < 1500
