from collections.abc import Callable
from functools import partial

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch.utils.data import DataLoader
from torchrl.envs import EnvBase

from collectors import (
    NonFiniteError,
    OnPolicyStream,
    RolloutBuffer,
    check_finite,
    make_collector,
    make_env,
)

ENVS, TIME = 2, 6
ROWS = ENVS * TIME


class FakeCollector:
    """Yields numbered rollouts and records when it was asked for one."""

    def __init__(self, log: list[str], count: int = 100) -> None:
        self.log, self.count = log, count
        self.policy = torch.nn.Identity()

    def __iter__(self):
        for index in range(self.count):
            self.log.append(f"collect {index}")
            numbers = torch.arange(ROWS).view(ENVS, TIME, 1) + 100.0 * index
            yield TensorDict({"observation": numbers}, [ENVS, TIME])

    def update_policy_weights_(self) -> None:
        self.log.append("update weights")


def make_stream(log: list[str], count: int = 100, **changes: object) -> OnPolicyStream:
    def prepare(rollout: TensorDictBase) -> TensorDictBase:
        log.append(f"prepare, gradients {torch.is_grad_enabled()}")
        return rollout.reshape(-1)

    def on_rollout_end(rollout: TensorDictBase) -> None:
        log.append(f"end {int(rollout['observation'].min()) // 100}")

    arguments = {"rows": ROWS, "minibatch_size": 4, "epochs": 2, "seed": 0, "rollouts": 2}
    arguments["on_rollout_end"] = on_rollout_end
    return OnPolicyStream(FakeCollector(log, count), prepare, **(arguments | changes))


def loader(stream: OnPolicyStream) -> DataLoader:
    return DataLoader(
        stream, batch_size=None, collate_fn=lambda rows: rows, generator=torch.Generator()
    )


def numbers(batches: list[TensorDictBase]) -> list[int]:
    return torch.cat([batch["observation"] for batch in batches]).flatten().int().tolist()


class TestStream:
    def test_every_row_comes_once_in_each_epoch(self) -> None:
        stream = make_stream([])
        batches = list(loader(stream))
        assert len(batches) == len(stream) == len(loader(stream)) == 2 * 2 * 3
        for rollout in range(2):
            for epoch in range(2):
                start = 6 * rollout + 3 * epoch
                seen = numbers(batches[start : start + 3])
                assert sorted(seen) == [100 * rollout + row for row in range(ROWS)]
                assert seen != sorted(seen)
        assert numbers(batches[:3]) != numbers(batches[3:6])

    def test_the_order_of_events(self) -> None:
        log: list[str] = []
        for index, _ in enumerate(loader(make_stream(log, epochs=1, minibatch_size=6))):
            log.append(f"train {index}")
        first = ["collect 0", "prepare, gradients False", "train 0", "train 1", "end 0"]
        second = ["update weights", "collect 1", "prepare, gradients False"]
        assert log == [*first, *second, "train 2", "train 3", "end 1"]

    def test_a_reader_that_stops_at_the_length_finishes_the_rollout_itself(self) -> None:
        log: list[str] = []
        stream = make_stream(log, rollouts=1)
        iterator = iter(stream)
        for _ in range(len(stream)):
            next(iterator)
        assert "end 0" not in log
        stream.finish_rollout()
        stream.finish_rollout()
        assert log.count("end 0") == 1
        next(iter(stream))
        assert log.count("end 0") == 1
        assert "collect 1" in log

    def test_a_forgotten_rollout_is_finished_before_the_next_is_collected(self) -> None:
        log: list[str] = []
        stream = make_stream(log, rollouts=1)
        next(iter(stream))
        next(iter(stream))
        assert log.index("end 0") < log.index("collect 1")

    def test_stopping_the_epochs_skips_the_rest_of_this_rollout_only(self) -> None:
        log: list[str] = []
        stream = make_stream(log)
        batches = []
        for index, batch in enumerate(stream):
            batches.append(batch)
            if index == 1:
                stream.stop_epochs()
        assert len(batches) == 2 + 6
        assert all(number < 100 for number in numbers(batches[:2]))
        # the shuffling starts afresh: the next epochs are complete
        assert sorted(numbers(batches[2:5])) == list(range(100, 100 + ROWS))
        assert sorted(numbers(batches[5:8])) == list(range(100, 100 + ROWS))
        assert log.count("end 0") == log.count("end 1") == 1

    def test_counters(self) -> None:
        stream = make_stream([], rollouts=1)
        assert (stream.frames, stream.iteration, stream.last_rollout) == (0, 0, None)
        for expected in (1, 2):
            list(stream)
            assert (stream.frames, stream.iteration) == (expected * ROWS, expected)
        assert stream.last_rollout is not None
        assert stream.last_rollout.shape == (ENVS, TIME)

    def test_a_resumed_stream_counts_and_shuffles_on(self) -> None:
        straight = make_stream([], rollouts=1)
        list(straight)
        state = straight.state_dict(collector=False)
        expected = [number % 100 for number in numbers(list(straight))]
        resumed = make_stream([], rollouts=1, seed=5)
        resumed.load_state_dict(state)
        assert numbers(list(resumed)) == expected
        assert (resumed.frames, resumed.iteration) == (2 * ROWS, 2)

    def test_shuffling_follows_its_seed_not_the_global_one(self) -> None:
        before = torch.get_rng_state()
        orders = [numbers(list(make_stream([], seed=seed))) for seed in (0, 0, 1)]
        assert orders[0] == orders[1]
        assert orders[0] != orders[2]
        assert torch.equal(before, torch.get_rng_state())

    def test_a_collector_that_ends_early(self) -> None:
        stream = make_stream([], count=1)
        with pytest.raises(RuntimeError, match="the collector stopped after 12 frames"):
            list(stream)

    def test_prepare_returning_another_number_of_rows(self) -> None:
        stream = make_stream([], rows=ROWS + 1)
        with pytest.raises(ValueError, match=r"flat batch of 13 rows, got the shape \(12,\)"):
            next(iter(stream))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"minibatch_size": 13}, "minibatch_size must be at most .* 12, got 13"),
            ({"minibatch_size": 0}, "minibatch_size must be .* at least 1, got 0"),
            ({"epochs": 0}, "epochs must be .* at least 1, got 0"),
            ({"rows": 0}, "rows must be .* at least 1, got 0"),
            ({"rollouts": 0}, "rollouts must be .* at least 1, got 0"),
        ],
    )
    def test_bad_arguments_are_refused_before_collecting(
        self, changes: dict[str, int], message: str
    ) -> None:
        log: list[str] = []
        with pytest.raises(ValueError, match=message):
            make_stream(log, **changes)
        assert log == []

    def test_the_weights_are_those_after_the_last_update(self) -> None:
        """A linear policy counts updates: each rollout must act with all of them."""
        net = torch.nn.Linear(2, 1)
        torch.nn.init.zeros_(net.weight)
        torch.nn.init.zeros_(net.bias)
        from tensordict.nn import TensorDictModule

        policy = TensorDictModule(net, in_keys=["observation"], out_keys=["action"])
        env_fn = partial(make_env, "Counting-v0", num_envs=2, low=-100.0, high=100.0)
        collector = make_collector(env_fn, policy, frames_per_batch=8, seed=0)
        actions: list[float] = []

        def prepare(rollout: TensorDictBase) -> TensorDictBase:
            actions.extend(rollout["action"].unique().tolist())
            return rollout.reshape(-1)

        stream = OnPolicyStream(
            collector, prepare, rows=8, minibatch_size=4, epochs=2, rollouts=3, seed=0
        )
        for _ in loader(stream):
            with torch.no_grad():
                net.bias += 1
        collector.shutdown()
        assert actions == [0.0, 4.0, 8.0]


# Lightning's own warnings: about torch's trees, and about loaders without worker processes.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
class TestLightning:
    @pytest.mark.parametrize("stop_at", [None, 2])
    def test_a_trainer_gets_the_fixed_number_or_stops_early(
        self, stop_at: int | None, tmp_path: object
    ) -> None:
        lightning = pytest.importorskip("lightning")
        log: list[str] = []
        stream = make_stream(log, rollouts=1)

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)
                self.automatic_optimization = False
                self.batches: list[int] = []

            def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
                self.batches.append(self.current_epoch)
                log.append("train")
                if batch_idx + 1 == stop_at:
                    stream.stop_epochs()

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

            def on_train_epoch_end(self) -> None:
                stream.finish_rollout()

        module = Module()
        with torch.random.fork_rng():
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_epochs=3,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
            )
            trainer.fit(module, loader(stream))
        per_epoch = stop_at or len(stream)
        assert module.batches == [epoch for epoch in range(3) for _ in range(per_epoch)]
        assert [entry for entry in log if entry.startswith("end")] == ["end 0", "end 1", "end 2"]
        assert stream.iteration == 3
        # nothing is collected ahead of the training on what came before
        order = [entry for entry in log if entry == "train" or entry.startswith("collect")]
        assert order == [
            entry for i in range(3) for entry in (f"collect {i}", *["train"] * per_epoch)
        ]


class TestBuffer:
    def test_rows_that_do_not_fill_a_minibatch_are_left_out(self) -> None:
        buffer = RolloutBuffer(10, minibatch_size=4, epochs=50, seed=0)
        rows = TensorDict({"x": torch.arange(10)}, [10])
        batches = list(buffer.minibatches(rows))
        assert len(batches) == len(buffer) == 100
        for epoch in range(50):
            seen = torch.cat([batch["x"] for batch in batches[2 * epoch : 2 * epoch + 2]])
            assert len(seen.unique()) == 8
        # other rows in each epoch, so that none is left out for good
        counts = torch.cat([batch["x"] for batch in batches]).bincount(minlength=10)
        assert counts.min() > 25

    def test_minibatches_are_rows_of_the_rollout(self) -> None:
        buffer = RolloutBuffer(9, minibatch_size=3, epochs=1, seed=0)
        rows = TensorDict({"x": torch.arange(9), "nested": {"y": torch.arange(9) * 10}}, [9])
        for batch in buffer.minibatches(rows):
            assert torch.equal(batch["nested", "y"], batch["x"] * 10)

    def test_a_second_rollout_replaces_the_first(self) -> None:
        buffer = RolloutBuffer(4, minibatch_size=2, epochs=1, seed=0)
        next(buffer.minibatches(TensorDict({"x": torch.zeros(4)}, [4])))
        second = buffer.minibatches(TensorDict({"x": torch.ones(4)}, [4]))
        assert torch.cat([batch["x"] for batch in second]).tolist() == [1.0] * 4


class TestCheckFinite:
    @pytest.mark.parametrize(
        ("bad_entry", "entry", "time"),
        [("reward", r"\('next', 'reward'\)", 3), ("observation", "'observation'", 4)],
    )
    def test_the_stream_names_entry_environment_and_time(
        self, bad_entry: str, entry: str, time: int
    ) -> None:
        env_fn = partial(make_env, "Counting-v0", num_envs=2, bad_step=4, bad_entry=bad_entry)
        collector = make_collector(env_fn, None, frames_per_batch=20, seed=0)
        prepared: list[TensorDictBase] = []
        stream = OnPolicyStream(
            collector,
            lambda rollout: prepared.append(rollout),
            rows=20,
            minibatch_size=5,
            epochs=1,
            seed=0,
        )
        message = f"entry {entry} is not finite: nan at environment index 0, time index {time}"
        with pytest.raises(ValueError, match=message):
            next(iter(stream))
        assert prepared == []
        assert (stream.frames, stream.last_rollout) == (0, None)
        collector.shutdown()

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize(
        "key", ["observation", ("next", "reward"), ("next", "body", "observation"), "latents"]
    )
    def test_the_first_bad_row_is_named(self, value: float, key: object) -> None:
        rollout = self.rollout()
        rollout[key][1, 2] = value
        rollout[key][0, 3] = value
        message = rf"{value} at environment index 1, time index 2 \(2 of 8 rows\)"
        with pytest.raises(NonFiniteError, match=message):
            check_finite(rollout)

    def test_the_environment_is_blamed_before_the_policy(self) -> None:
        rollout = self.rollout()
        rollout["latents"][0, 1] = torch.nan
        rollout["next", "speed"][0, 0] = torch.nan
        with pytest.raises(NonFiniteError, match=r"entry \('next', 'speed'\) is not finite"):
            check_finite(rollout)
        rollout["speed"][0, 1] = torch.nan
        with pytest.raises(NonFiniteError, match="entry 'speed' is not finite"):
            check_finite(rollout)

    def test_finite_rollouts_and_unselected_keys_pass(self) -> None:
        rollout = self.rollout()
        check_finite(rollout)
        rollout["latents"][0, 1] = torch.nan
        check_finite(rollout, keys=["observation", ("next", "reward")])

    def rollout(self) -> TensorDict:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(2, 4, *shape)

        following = {"reward": zeros(1), "done": zeros(1).bool(), "speed": zeros(1)}
        return TensorDict(
            {
                "observation": zeros(3),
                "speed": zeros(1),
                "latents": zeros(5, 2),
                "next": following | {"body": {"observation": zeros(3)}},
            },
            [2, 4],
        )


@pytest.mark.parametrize("rollouts", [1, 3])
def test_the_stream_reads_a_random_policy_quietly(
    rollouts: int, pendulum: Callable[..., EnvBase], capfd: pytest.CaptureFixture[str]
) -> None:
    collector = make_collector(pendulum, None, frames_per_batch=8, seed=0)
    stream = OnPolicyStream(
        collector,
        lambda rollout: rollout.reshape(-1),
        rows=8,
        minibatch_size=4,
        epochs=2,
        rollouts=rollouts,
        seed=0,
    )
    assert len(list(stream)) == 4 * rollouts
    collector.shutdown()
    assert capfd.readouterr() == ("", "")


def test_the_stream_reads_a_real_collector_with_chains(pendulum: Callable[..., EnvBase]) -> None:
    from diffpolicy.actors import build_ppo_networks, chain_rows

    actor = build_ppo_networks(pendulum(), denoising_steps=3).actor
    collector = make_collector(pendulum, actor, frames_per_batch=8, seed=0)
    stream = OnPolicyStream(
        collector,
        lambda rollout: chain_rows(rollout).reshape(-1),
        rows=8 * 3,
        minibatch_size=6,
        epochs=2,
        rollouts=2,
        seed=0,
    )
    batches = list(loader(stream))
    assert [batch.shape for batch in batches] == [(6,)] * 16
    steps = torch.cat([batch["step"] for batch in batches]).flatten().bincount()
    assert steps.tolist() == [32, 32, 32]
    assert stream.frames == 16
    collector.shutdown()
