"""Running statistics: exact merging, frozen forward pass, several ranks."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffpolicy.networks import RunningNorm

ROOT = Path(__file__).resolve().parents[2]


def assert_statistics_of(norm: RunningNorm, data: torch.Tensor, rtol: float = 1e-9) -> None:
    flat = data.reshape(-1, data.shape[-1]).double()
    assert norm.count.item() == flat.shape[0]
    torch.testing.assert_close(norm.mean, flat.mean(0), rtol=rtol, atol=1e-12)
    torch.testing.assert_close(norm.variance, flat.var(0, correction=0), rtol=rtol, atol=1e-12)


@given(
    seed=st.integers(0, 2**20),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, -3.0, 1e3]),
    drift=st.sampled_from([0.0, 1.0, 50.0]),
)
def test_merged_batches_equal_the_whole_data(
    seed: int, sizes: list[int], offset: float, drift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    batches = [
        offset
        + drift * index
        + scale * torch.randn(size, 3, dtype=torch.float64, generator=generator)
        for index, size in enumerate(sizes)
    ]
    norm = RunningNorm(3)
    for batch in batches:
        norm.update(batch)
    assert_statistics_of(norm, torch.cat(batches), rtol=1e-8)


@pytest.mark.parametrize("offset", [1e6, -1e8])
def test_statistics_stay_accurate_far_from_zero(offset: float) -> None:
    data = offset + 0.1 * torch.randn(400, 2, dtype=torch.float64)
    norm = RunningNorm(2)
    for batch in data.split(130):
        norm.update(batch)
    assert_statistics_of(norm, data, rtol=1e-5)


def test_batch_dimensions_are_flattened() -> None:
    data = torch.randn(4, 5, 2)
    norm = RunningNorm(2)
    norm.update(data)
    assert_statistics_of(norm, data)
    norm.update(data[0, 0])
    assert norm.count.item() == 21


def test_forward_standardises() -> None:
    data = 7 + 3 * torch.randn(500, 2)
    norm = RunningNorm(2)
    norm.update(data)
    out = norm(data)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_without_data_forward_is_the_identity_up_to_the_clip() -> None:
    norm = RunningNorm(2, clip=5.0)
    out = norm(torch.tensor([1.5, -7.0]))
    torch.testing.assert_close(out, torch.tensor([1.5, -5.0]))


def test_constant_features_stay_finite() -> None:
    norm = RunningNorm(1)
    norm.update(torch.full((10, 1), 3.0))
    assert norm.variance.item() == 0
    assert norm(torch.tensor([[3.0], [4.0], [2.0]])).flatten().tolist() == [0.0, 10.0, -10.0]


@pytest.mark.parametrize("training", [True, False])
def test_forward_never_updates(training: bool) -> None:
    norm = RunningNorm(2).train(training)
    norm.update(torch.randn(10, 2))
    before = copy.deepcopy(norm.state_dict())
    for _ in range(3):
        norm(100 * torch.randn(8, 2))
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_gradient_flows_to_the_input_and_not_through_an_update() -> None:
    norm = RunningNorm(2)
    value = torch.randn(6, 2, requires_grad=True)
    norm.update(value)
    assert not any(buffer.requires_grad for buffer in norm.buffers())
    norm(value).sum().backward()
    torch.testing.assert_close(value.grad, (norm.variance + norm.eps).rsqrt().float().expand(6, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_change_nothing(bad: float) -> None:
    norm = RunningNorm(2)
    norm.update(torch.randn(10, 2))
    before = copy.deepcopy(norm.state_dict())
    batch = torch.randn(4, 2)
    batch[2, 1] = bad
    with pytest.raises(ValueError, match="batch must be finite"):
        norm.update(batch)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_wrong_feature_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch must have 2 features, got shape \(4, 3\)"):
        RunningNorm(2).update(torch.zeros(4, 3))


def test_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch must not be empty, got shape \(0, 2\)"):
        RunningNorm(2).update(torch.zeros(0, 2))


def test_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        RunningNorm(0)


def test_state_dict_round_trip_continues_exactly() -> None:
    first, second = torch.randn(2, 10, 3)
    norm, restored = RunningNorm(3), RunningNorm(3)
    norm.update(first)
    state = copy.deepcopy(norm.state_dict())
    restored.load_state_dict(state)
    for each in (norm, restored):
        each.update(second)
    assert_statistics_of(restored, torch.cat((first, second)))
    torch.testing.assert_close(restored.state_dict(), norm.state_dict(), rtol=0, atol=0)


RANK_PROGRAM = """
import sys
import torch
import torch.distributed as dist
from diffpolicy.networks import RunningNorm

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(rank)
norm = RunningNorm(2)
data = []
for size in (3 + rank, 7 - 2 * rank):
    batch = 4.0 * rank + torch.randn(size, 2)
    norm.update(batch)
    data.append(batch)
torch.save((norm.state_dict(), torch.cat(data)), f"{folder}/rank{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_ranks_share_the_statistics_of_all_data(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, str(rank), str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    everything = torch.cat([data for _, data in results])
    for state, data in results:
        norm = RunningNorm(2)
        norm.load_state_dict(state)
        assert data.shape[0] < everything.shape[0]
        assert_statistics_of(norm, everything)
