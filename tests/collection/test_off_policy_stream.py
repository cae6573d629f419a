from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch.utils.data import DataLoader
from torchrl.collectors import BaseCollector
from torchrl.data import (
    LazyTensorStorage,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)

from collectors import (
    EpisodeStats,
    NonFiniteError,
    OffPolicyStream,
    make_collector,
    make_env,
    make_replay_buffer,
)

MakePolicy = Callable[..., TensorDictModule]
ENVS = 2
LENGTH = 5  # of an episode of the counting environment
counting = partial(make_env, "Counting-v0", num_envs=ENVS, length=LENGTH)


class LoggingBuffer(TensorDictReplayBuffer):
    """Records the order in which rows come and go."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(
            storage=LazyTensorStorage(100),
            batch_size=4,
            generator=torch.Generator().manual_seed(0),
        )
        self.log = log

    def extend(self, tensordicts: TensorDictBase, **options: bool) -> torch.Tensor:
        self.log.append("store")
        return super().extend(tensordicts, **options)

    def sample(self, *args: object, **options: object) -> TensorDictBase:
        self.log.append("sample")
        return super().sample(*args, **options)


class PriorityBuffer(TensorDictPrioritizedReplayBuffer):
    """Records the priorities that come back; has none of the compiled trees that keep them."""

    def __init__(self, log: list[str]) -> None:
        self._sync, self.log = True, log
        self.priorities: list[tuple[list[int], list[float]]] = []
        TensorDictReplayBuffer.__init__(self, storage=LazyTensorStorage(100), batch_size=4)

    def sample(self, *args: object, **options: object) -> TensorDictBase:
        self.log.append("sample")
        return super().sample(*args, **options)

    def update_tensordict_priority(self, data: TensorDictBase) -> None:
        self.log.append("priorities")
        self.priorities.append((data["index"].tolist(), data["td_error"].flatten().tolist()))


def make_stream(
    log: list[str] | None = None,
    *,
    collector: BaseCollector | None = None,
    buffer: TensorDictReplayBuffer | None = None,
    frames: int = 8,
    updates_per_step: float = 1.0,
    keys: list[NestedKey] | None = None,
    write_back: dict[NestedKey, NestedKey] | None = None,
) -> OffPolicyStream:
    if collector is None:
        collector = make_collector(counting, None, frames_per_batch=ENVS, seed=0)
    if buffer is None:
        buffer = LoggingBuffer([] if log is None else log)
    return OffPolicyStream(
        collector,
        buffer,
        frames=frames,
        updates_per_step=updates_per_step,
        keys=keys,
        write_back=write_back,
    )


def loader(stream: OffPolicyStream) -> DataLoader:
    return DataLoader(
        stream, batch_size=None, collate_fn=lambda rows: rows, generator=torch.Generator()
    )


class TestOrder:
    def test_updates_follow_the_steps_that_they_are_due_after(self) -> None:
        log: list[str] = []
        stream = make_stream(log)
        for number, _ in enumerate(loader(stream)):
            log.append(f"train {number}")
        log = [entry.split()[0] for entry in log]
        assert log == ["store", "sample", "train", "sample", "train"] * 4

    @pytest.mark.parametrize(
        ("frames", "updates_per_step", "after_each_step"),
        [
            (8, 0.25, [0, 1, 0, 1]),
            (8, 1.5, [3, 3, 3, 3]),
            (8, 0.75, [1, 2, 1, 2]),
            (8, 2, [4, 4, 4, 4]),
            (6, 1 / 3, [0, 1, 1]),
            (8, 0.125, [0, 0, 0, 1]),
        ],
    )
    def test_ratios(self, frames: int, updates_per_step: float, after_each_step: list[int]) -> None:
        log: list[str] = []
        stream = make_stream(log, frames=frames, updates_per_step=updates_per_step)
        for count in (1, 2):  # the next pass is like the first
            log.clear()
            batches = list(stream)
            expected = [["store", *["sample"] * samples] for samples in after_each_step]
            assert log == [entry for step in expected for entry in step]
            assert len(batches) == len(stream) == len(loader(stream)) == sum(after_each_step)
            assert stream.updates == count * len(stream)
            assert stream.collected == count * frames

    @pytest.mark.parametrize("updates_per_step", [0.29, 0.57, 0.1, 0.7, 1.1])
    def test_ratios_are_the_decimal_numbers_that_they_are_written_as(
        self, updates_per_step: float
    ) -> None:
        stream = make_stream(frames=100, updates_per_step=updates_per_step)
        assert len(stream) == len(list(stream)) == round(100 * updates_per_step)

    def test_rollouts_of_several_steps(self) -> None:
        log: list[str] = []
        collector = make_collector(counting, None, frames_per_batch=3 * ENVS, seed=0)
        stream = make_stream(log, collector=collector, frames=12, updates_per_step=0.25)
        assert len(list(stream)) == len(stream) == 3
        assert log == ["store", "sample", "store", "sample", "sample"]
        assert len(stream.buffer) == 12

    def test_each_step_acts_with_all_updates(self) -> None:
        net = torch.nn.Linear(2, 1)
        torch.nn.init.zeros_(net.weight)
        torch.nn.init.zeros_(net.bias)
        policy = TensorDictModule(net, in_keys=["observation"], out_keys=["action"])
        env_fn = partial(make_env, "Counting-v0", num_envs=ENVS, low=-100.0, high=100.0)
        collector = make_collector(env_fn, policy, frames_per_batch=ENVS, seed=0)
        stream = make_stream(collector=collector, updates_per_step=0.5)
        for _ in stream:
            with torch.no_grad():
                net.bias += 1
        assert stream.buffer[:]["action"].flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


class TestRows:
    def test_every_row_is_a_real_transition(self) -> None:
        stream = make_stream(frames=8 * ENVS, updates_per_step=1 / 16)
        list(stream)
        rows = stream.buffer[:]
        assert rows.shape == (8 * ENVS,)
        for env in range(ENVS):
            row = rows[env::ENVS]
            assert row["observation"][:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
            # the last observation of an episode is the simulator's own, not the next reset's
            assert row["next", "observation"][:, 0].tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
            assert row["next", "terminated"].flatten().nonzero().flatten().tolist() == [4]
            assert row["next", "reward"].flatten().tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
            assert row["next", "observation"][:, 1].equal(row["action"].flatten())

    def test_a_time_limit_is_stored_as_one(self, source: str) -> None:
        env_fn = partial(make_env, "Pendulum-v1", num_envs=ENVS, max_episode_steps=3, source=source)
        collector = make_collector(env_fn, None, frames_per_batch=ENVS, seed=0)
        stream = make_stream(collector=collector)
        rows = stream.warm_up(4 * ENVS)[::ENVS]
        assert rows["next", "truncated"].flatten().tolist() == [False, False, True, False]
        assert not rows["next", "terminated"].any()
        continues = (rows["next", "observation"][:-1] == rows["observation"][1:]).all(-1)
        assert continues.tolist() == [True, True, False]

    def test_only_the_named_entries_are_stored(self) -> None:
        keys = ["observation", "action", ("next", "reward"), ("next", "observation")]
        stream = make_stream(keys=keys)
        batch = next(iter(stream))
        assert set(batch.keys(True, True)) == {*keys, "index"}
        assert set(stream.warm_up(ENVS).keys(True, True)) == set(keys)

    def test_all_entries_are_stored_by_default(self) -> None:
        stored = set(next(iter(make_stream())).keys(True, True))
        assert {"observation", "action", ("next", "terminated"), ("next", "step_count")} <= stored

    def test_an_entry_that_is_not_there(self) -> None:
        stream = make_stream(keys=["observation", "vision"])
        with pytest.raises(KeyError, match="vision"):
            next(iter(stream))
        assert len(stream.buffer) == 0

    def test_dict_observations(self) -> None:
        collector = make_collector(
            partial(counting, as_dict=True), None, frames_per_batch=ENVS, seed=0
        )
        keys = [("observation", "body", "speed"), ("next", "observation", "body", "speed")]
        stream = make_stream(collector=collector, keys=keys)
        rows = stream.warm_up(2 * ENVS)
        assert rows["observation", "body", "speed"][:, 0].tolist() == [0, 0, 1, 1]
        assert rows["next", "observation", "body", "speed"][:, 0].tolist() == [1, 1, 2, 2]


class TestWarmUp:
    def test_it_stores_steps_and_returns_their_rows(self) -> None:
        log: list[str] = []
        stream = make_stream(log)
        rows = stream.warm_up(6)
        assert log == ["store"] * 3
        assert rows.shape == (6,)
        assert rows["observation"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        assert torch.equal(stream.buffer[:]["observation"], rows["observation"])
        assert (stream.collected, stream.updates) == (6, 0)
        # the pass goes on from there
        next(iter(stream))
        assert stream.buffer[:]["observation"][6:, 0].tolist() == [3, 3]

    def test_the_rows_are_its_own(self) -> None:
        stream = make_stream()
        rows = stream.warm_up(ENVS)
        stream.warm_up(ENVS)
        rows["observation"].fill_(7.0)
        assert stream.buffer[:]["observation"][:ENVS, 0].tolist() == [0, 0]

    @pytest.mark.parametrize(("frames", "better"), [(0, 2), (-4, 2), (3, 4)])
    def test_frames_that_cannot_be_met(self, frames: int, better: int) -> None:
        message = f"frames must be a multiple of .*=2, got {frames}; try {better}"
        with pytest.raises(ValueError, match=message):
            make_stream().warm_up(frames)


class TestCounters:
    def test_episodes_are_summed_over_a_pass(self) -> None:
        stream = make_stream(frames=6 * ENVS, updates_per_step=0.5)
        assert stream.episodes == EpisodeStats(0, 0.0, 0)
        stream.warm_up(4 * ENVS)
        assert stream.episodes == EpisodeStats(0, 0.0, 0)
        stream.warm_up(ENVS)
        one = EpisodeStats(ENVS, ENVS * (1.0 + 2 + 3 + 4 + 5), ENVS * LENGTH)
        assert stream.episodes == one
        list(stream)  # steps 6 to 11
        assert stream.episodes == one
        stream.warm_up(4 * ENVS)  # steps 12 to 15
        assert stream.episodes == one + one
        list(stream)
        assert stream.episodes == one

    def test_a_resumed_stream_counts_on(self) -> None:
        stream = make_stream()
        stream.warm_up(4)
        list(stream)
        resumed = make_stream()
        resumed.load_state_dict(stream.state_dict())
        assert (resumed.collected, resumed.updates) == (12, 8)
        list(resumed)
        assert (resumed.collected, resumed.updates) == (20, 16)


class TestSeeds:
    def read(
        self, make_policy: MakePolicy, source: str, seed: int, global_seed: int
    ) -> TensorDictBase:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        env_fn = partial(make_env, "Pendulum-v1", num_envs=ENVS, source=source)
        policy = make_policy(3, 1, 2.0)
        collector = make_collector(
            env_fn, policy, frames_per_batch=ENVS, seed=seed, random_frames=2 * ENVS
        )
        buffer = make_replay_buffer(100, batch_size=8, seed=seed)
        stream = OffPolicyStream(collector, buffer, frames=8 * ENVS, updates_per_step=0.5)
        stream.warm_up(2 * ENVS)
        batches = torch.cat(list(loader(stream)))
        collector.shutdown()
        assert torch.equal(before, torch.get_rng_state())
        return batches

    def test_the_seeds_fix_the_batches_and_the_global_random_state_has_no_part(
        self, make_policy: MakePolicy, source: str
    ) -> None:
        first, again, other = (
            self.read(make_policy, source, *seeds) for seeds in [(0, 0), (0, 99), (1, 0)]
        )
        assert (first == again).all()
        assert not torch.equal(first["observation"], other["observation"])
        assert not torch.equal(first["index"], other["index"])


class TestNonFinite:
    @pytest.mark.parametrize(
        ("entry", "key"), [("observation", r"\('next', 'observation'\)"), ("reward", "reward")]
    )
    def test_a_bad_step_is_refused_before_it_is_stored(self, entry: str, key: str) -> None:
        env_fn = partial(counting, bad_step=3, bad_entry=entry)
        collector = make_collector(env_fn, None, frames_per_batch=ENVS, seed=0)
        stream = make_stream(collector=collector)
        seen = []
        with pytest.raises(NonFiniteError, match=rf"{key}.* is not finite: nan at environment"):
            seen.extend(stream)
        assert len(seen) == stream.collected == len(stream.buffer) == 2 * ENVS
        assert stream.buffer[:]["next", "observation"].isfinite().all()

    def test_warm_up_refuses_it_too(self) -> None:
        env_fn = partial(counting, bad_step=3)
        collector = make_collector(env_fn, None, frames_per_batch=ENVS, seed=0)
        with pytest.raises(NonFiniteError, match="environment index 0, time index 0"):
            make_stream(collector=collector).warm_up(10)

    def test_entries_that_are_not_stored_are_not_checked(self) -> None:
        env_fn = partial(counting, bad_step=3, bad_entry="reward")
        collector = make_collector(env_fn, None, frames_per_batch=ENVS, seed=0)
        stream = make_stream(collector=collector, keys=["observation", "action"])
        assert len(list(stream)) == len(stream)


class TestPriorities:
    def test_they_go_back_after_each_batch(self) -> None:
        log: list[str] = []
        stream = make_stream(log, buffer=PriorityBuffer(log), frames=4, updates_per_step=0.5)
        expected = []
        for number, batch in enumerate(loader(stream)):
            batch["td_error"] = torch.full((4, 1), float(number))
            expected.append((batch["index"].tolist(), [float(number)] * 4))
        assert log == ["sample", "priorities"] * 2
        assert stream.buffer.priorities == expected

    def test_a_reader_that_stops_at_the_length_hands_the_last_ones_back_itself(self) -> None:
        log: list[str] = []
        stream = make_stream(log, buffer=PriorityBuffer(log), frames=2, updates_per_step=0.5)
        next(iter(stream))["td_error"] = torch.ones(4, 1)
        assert log == ["sample"]
        stream.finish_batch()
        stream.finish_batch()
        assert log == ["sample", "priorities"]

    @pytest.mark.parametrize("following", ["pass", "warm up"])
    def test_forgotten_ones_go_back_before_the_next_step(self, following: str) -> None:
        log: list[str] = []
        stream = make_stream(log, buffer=PriorityBuffer(log), frames=2, updates_per_step=0.5)
        next(iter(stream))["td_error"] = torch.ones(4, 1)
        if following == "pass":
            next(iter(stream))
            assert log == ["sample", "priorities", "sample"]
        else:
            stream.warm_up(2)
            assert log == ["sample", "priorities"]

    def test_a_loss_that_writes_none(self) -> None:
        log: list[str] = []
        stream = make_stream(log, buffer=PriorityBuffer(log))
        with pytest.raises(KeyError, match="nothing has written 'td_error' into it"):
            list(stream)

    def test_a_uniform_buffer_needs_none(self) -> None:
        stream = make_stream()
        for batch in stream:
            batch["td_error"] = torch.ones(4, 1)
        stream.finish_batch()
        assert stream.updates == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames must be a multiple of .*frames_per_batch=2, got 0; try 2"),
        ({"frames": 7}, "frames must be a multiple of .*frames_per_batch=2, got 7; try 8"),
        ({"updates_per_step": 0.3}, r"whole number, got 8 \* 0.3 = 2.4; try frames=10"),
        ({"updates_per_step": 1 / 3}, r"got 8 \* 0.333.* = 2.66667; try frames=12"),
        ({"updates_per_step": 0.1}, r"got 8 \* 0.1 = 0.8; try frames=10"),
        ({"updates_per_step": 0.0}, "updates_per_step must be a finite number .*, got 0.0"),
        ({"updates_per_step": -1.0}, "updates_per_step must be a finite number .*, got -1.0"),
        ({"updates_per_step": float("inf")}, "updates_per_step must be .*, got inf"),
        ({"updates_per_step": float("nan")}, "updates_per_step must be .*, got nan"),
        ({"keys": []}, "keys must name at least one entry to store"),
    ],
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match=message):
        make_stream(log, **changes)
    assert log == []


def test_a_collector_that_ends_early() -> None:
    collector = make_collector(counting, None, frames_per_batch=ENVS, total_frames=4, seed=0)
    with pytest.raises(RuntimeError, match="the collector stopped after 4 frames"):
        list(make_stream(collector=collector))


# Lightning's own warnings: about torch's trees, and about loaders without worker processes.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
def test_a_lightning_trainer_steps_and_hands_back_priorities_in_turn(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    log: list[str] = []
    stream = make_stream(log, buffer=PriorityBuffer(log), frames=4, updates_per_step=0.5)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.automatic_optimization = False

        def training_step(self, batch: TensorDict, batch_idx: int) -> None:
            log.append("train")
            batch["td_error"] = torch.full((4, 1), float(batch_idx))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_train_epoch_end(self) -> None:
            stream.finish_batch()

    with torch.random.fork_rng():
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(Module(), loader(stream))
    # nothing is collected or sampled ahead of the update before
    assert log == ["sample", "train", "priorities"] * 4
    assert [priorities[0] for _, priorities in stream.buffer.priorities] == [0.0, 1.0] * 2


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_what_a_batch_changes_goes_back_to_its_rows(storage: str) -> None:
    """Entries to write back start as others, and are kept; nothing else of a batch is."""
    buffer = make_replay_buffer(100, batch_size=3, seed=0, storage=storage)
    stream = make_stream(
        buffer=buffer, keys=["action", ("next", "reward")], write_back={"better": "action"}
    )
    expected: dict[int, int] = {}
    for batch in loader(stream):
        for row, index in enumerate(batch["index"].tolist()):
            before = float(batch["better"][row]) - float(batch["action"][row])
            assert before == pytest.approx(expected.get(index, 0))
        batch["better"] += 1
        batch["next", "reward"] += 100
        expected |= {index: expected.get(index, 0) + 1 for index in batch["index"].tolist()}
    stream.finish_batch()
    rows = buffer[:]
    moved = (rows["better"] - rows["action"]).flatten().tolist()
    assert moved == pytest.approx([expected.get(index, 0) for index in range(len(moved))])
    assert float(rows["next", "reward"].max()) < 100
