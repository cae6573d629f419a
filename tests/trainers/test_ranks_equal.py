"""Two ranks of batch B make the updates of one process of batch 2B, with every method.

Data and noise are the same: row by row, whoever trains on the row. Everything else is what a run
does: the Lightning modules, their training step, the strategy and its processes. The numbers are of
double precision: where a gradient is zero but for rounding, Adam makes steps out of the rounding.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from small_methods import small_config
from tensordict import TensorDictBase
from torch import Tensor
from torch.overrides import TorchFunctionMode

import diffpolicy.trainers.run.launch as launch
from collectors import EpisodeStats
from collectors.collection.rollouts import RolloutReader
from diffpolicy.trainers import (
    METHODS,
    Evaluation,
    OffPolicyModule,
    OnPolicyModule,
    RLModule,
    prepare,
    train,
)
from diffpolicy.trainers.loops.evaluation import Evaluator
from objectives import diff_ppo

UPDATES = 10
# Numbers that no other dimension has, so that the dimension of rows is known by its size.
ENVS, STEPS, BATCH = 6, 5, 12
TOLERANCE = 1e-6
ENV = "Reacher-v5"
COMMON: dict[str, Any] = {
    "env": ENV,
    "max_episode_steps": 4,
    "actor_hidden_sizes": (16,),
    "critic_hidden_sizes": (16,),
    "eval_episodes": 1,
    "eval_every": 10**6,
    "checkpoint_every": 10**6,
    "total_frames": 2 * ENVS * STEPS,
}
BATCH_NORMALISED = {"critic_normalization": "batch", "delay_critic": False}
# Every method, and variants of some.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    # The weight falls by the number of planned updates, which recorded data do not follow.
    "qvpo": ("qvpo", {"uniform_weight": 0.0}),
    "dime, critics first": ("dime", {"update_order": "critic_first"}),
    "diffsac, batch-normalised": ("diffsac", BATCH_NORMALISED),
}


class RowNoise(TorchFunctionMode):
    """Random numbers that belong to rows: two ranks draw what one process draws for both.

    Args:
        rows: size of the dimension of rows.
        shares: the ranks whose rows these are.
        draw: number of the first draw.
    """

    def __init__(self, rows: int, shares: list[int], draw: int) -> None:
        super().__init__()
        self.rows, self.shares, self.draw = rows, shares, draw

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn, torch.randn_like, torch.Tensor.normal_):
            return self._filled(func(*args, **kwargs), torch.randn)
        if func in (torch.rand, torch.rand_like):
            return self._filled(func(*args, **kwargs), torch.rand)
        if func is torch.randint:
            high = args[0]
            return self._filled(func(*args, **kwargs), torch.rand, high)
        assert func not in (torch.normal, torch.bernoulli, torch.multinomial), func
        return func(*args, **kwargs)

    def _filled(self, out: Tensor, sample: Any, high: int | None = None) -> Tensor:
        dim = list(out.shape).index(self.rows)
        shape = list(out.shape)
        shape[dim] //= len(self.shares)
        parts = []
        for share in self.shares:
            generator = torch.Generator().manual_seed(1000 * self.draw + share)
            parts.append(sample(shape, generator=generator))
        self.draw += 1
        values = torch.cat(parts, dim)
        return out.copy_(values if high is None else (values * high).floor())


class Replay:
    """Recorded data in place of a collector: a rank has its half of it, one process has both.

    Args:
        data: rollouts ``[ENVS, STEPS]`` for on-policy methods, else batches ``[BATCH]``.
        prepare: turns a rollout into rows; None yields the batches.
        shares: the ranks whose data this is.
    """

    def __init__(self, data: list[TensorDictBase], prepare: Any, shares: list[int]) -> None:
        self.data = [torch.cat([item.chunk(2)[share] for share in shares]) for item in data]
        self.prepare, self.shares = prepare, shares
        self.iteration, self.collected = 0, 0
        self.last_rollout: TensorDictBase | None = None
        self.episodes = EpisodeStats(0, 0.0, 0)
        self.collector = self.buffer = self

    def __len__(self) -> int:
        return len(self.data) if self.prepare is None else UPDATES // len(self.data)

    def __iter__(self) -> Iterator[TensorDictBase]:
        if self.prepare is None:
            self.collected += ENVS * STEPS * len(self.shares) // 2
            yield from self.data
            return
        self.last_rollout = self.data[self.iteration]
        self.iteration += 1
        with torch.no_grad(), RowNoise(len(self.last_rollout), self.shares, 100 * self.iteration):
            rows = self.prepare(self.last_rollout)
        rows = rows.reshape(len(self.shares), -1)
        for index in range(len(self)):
            yield rows[:, index :: len(self)].reshape(-1)

    def warm_up(self, frames: int) -> TensorDictBase:
        return torch.cat(self.data)

    def finish_batch(self) -> None: ...

    def shutdown(self) -> None: ...


def state(module: RLModule) -> Tensor:
    """All parameters and buffers: targets, multipliers and statistics, too."""
    values = module.state_dict()
    return torch.cat([values[name].detach().flatten().double() for name in sorted(values)])


class NoEvaluator(Evaluator):
    """Evaluates nothing: environments do not take numbers of double precision."""

    def evaluate(self, policy: Any, frames: int, collector: Any) -> Evaluation:
        return Evaluation(frames, 0.0, 0.0, 1)


class Probe(RLModule):
    """Trains on recorded data and saves the state after every update."""

    data: ClassVar[list[TensorDictBase]] = []

    def start_collecting(self, policy: Any, seed: Any) -> Replay:
        self.shares = [0, 1] if self.trainer.world_size == 1 else [self.global_rank]
        self.states = [state(self)]
        self.evaluator = NoEvaluator(self.config)
        return Replay(self.data, getattr(self.parts, "prepare", None), self.shares)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        with RowNoise(len(batch), self.shares, 10_000 * len(self.states)):
            super().training_step(batch, batch_idx)
        self.states.append(state(self))

    def rank_state(self) -> dict[str, Any]:
        return {}

    def save_replay(self, folder: Path) -> None: ...

    def on_train_end(self) -> None:
        torch.save(torch.stack(self.states), f"{self.config.output}/rank{self.global_rank}.pt")


class OnPolicyProbe(Probe, OnPolicyModule):
    """Probe of an on-policy method."""


class OffPolicyProbe(Probe, OffPolicyModule):
    """Probe of an off-policy method."""


def make_config(case: str, ranks: int, output: Path) -> Any:
    name, options = CASES[case]
    given: dict[str, Any] = {**COMMON, "cpu_ranks": ranks, "output": str(output)}
    given["num_envs"] = ENVS // ranks
    if METHODS[name].kind == "on-policy":
        # The default number of rows in a minibatch, and of epochs.
        given |= {"rollout_steps": STEPS, "epochs": 10}
    else:
        frames = ENVS * STEPS // ranks
        given |= {"learning_starts": frames, "iteration_frames": frames, "policy_delay": 2}
        given |= {"updates_per_step": 1.0, "batch_size": BATCH // ranks}
    return small_config(name, **given, **options)


def make_probe(case: str) -> Callable[[Any, torch.device], RLModule]:
    method = METHODS[CASES[case][0]]
    probe: Any = OnPolicyProbe if method.kind == "on-policy" else OffPolicyProbe
    return lambda config, device: probe(config, method.build, device)


def double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def record(name: str, folder: Path) -> list[TensorDictBase]:
    """Real data: two rollouts of the initial policy, or batches of their transitions."""
    module = make_probe(name)(make_config(name, 1, folder), torch.device("cpu"))
    collector = module.make_collector(module.actor, frames_per_batch=ENVS * STEPS, seed=0)
    reader = RolloutReader(collector)
    try:
        rollouts = [reader.read().apply(double) for _ in range(2)]
    finally:
        collector.shutdown()
    if isinstance(module, OnPolicyModule):
        return rollouts
    rows = torch.cat([rollout.reshape(-1) for rollout in rollouts]).select(*module.parts.keys)
    return [rows[torch.randint(len(rows), (BATCH,))] for _ in range(UPDATES)]


def trained_states(name: str, ranks: int, folder: Path) -> list[Tensor]:
    """The states ``[UPDATES + 1, P]`` of every rank."""
    run = prepare(make_config(name, ranks, folder / f"{ranks}"), make_probe(name))
    assert train(run)
    return [torch.load(run.output / f"rank{rank}.pt") for rank in range(ranks)]


def check_equal(name: str, folder: Path) -> None:
    """Train in one process and on two ranks, and compare the states after every update."""
    Probe.data = record(name, folder)
    torch.set_default_dtype(torch.double)
    try:
        (single,) = trained_states(name, 1, folder)
        first, second = trained_states(name, 2, folder)
    finally:
        torch.set_default_dtype(torch.float)
    assert len(single) == len(first) == UPDATES + 1
    assert float((single[-1] - single[0]).abs().max()) > 100 * TOLERANCE
    assert torch.equal(first, second), "the ranks differ"
    largest = float((first - single).abs().max())
    assert largest < TOLERANCE, f"ranks and one process differ by {largest}"


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process(name: str, tmp_path: Path) -> None:
    check_equal(name, tmp_path)


class PastTheWrapper(DDPStrategy):
    """A deliberate mistake: the wrapper that averages gradients hears of no loss."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*args, **kwargs)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Lightning would prepare the wrapper here, wherever the loss was computed."""


@pytest.mark.parametrize("name", ["diffppo", "dime"])
def test_a_loss_computed_past_the_wrapper_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "DDPStrategy", PastTheWrapper)
    with pytest.raises(AssertionError, match="the ranks differ"):
        check_equal(name, tmp_path)


def test_a_statistic_of_each_rank_alone_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff_ppo, "sum_over_ranks", lambda value: value)
    with pytest.raises(AssertionError, match="ranks and one process differ by"):
        check_equal("diffppo", tmp_path)
