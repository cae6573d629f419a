"""Batch renormalisation against the formulas of arXiv 1702.03275, written out with NumPy."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffpolicy.networks import BatchRenorm

EPS, MOMENTUM, R_MAX, D_MAX = 1e-3, 0.99, 3.0, 5.0


class Reference:
    """The layer with loops and NumPy, affine part left out."""

    def __init__(self, features: int, warmup: int, correction_eps: float = EPS) -> None:
        self.correction_eps = correction_eps
        self.mean, self.var = np.zeros(features), np.ones(features)
        self.steps, self.warmup = 0, warmup

    def train(self, x: np.ndarray) -> np.ndarray:
        mean, var = x.mean(0), x.var(0)
        std, inside = np.sqrt(var + EPS), self.correction_eps
        r, d = np.ones_like(mean), np.zeros_like(mean)
        if self.steps >= self.warmup:
            running_std = np.sqrt(self.var + inside)
            r = np.clip(np.sqrt(var + inside) / running_std, 1 / R_MAX, R_MAX)
            d = np.clip((mean - self.mean) / running_std, -D_MAX, D_MAX)
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * mean
        self.var = MOMENTUM * self.var + (1 - MOMENTUM) * var
        self.steps += 1
        return (x - mean) / std * r + d

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / np.sqrt(self.var + EPS)


def batches(count: int, features: int = 3, rows: int = 7) -> list[torch.Tensor]:
    scale = torch.tensor([0.1, 1.0, 8.0], dtype=torch.float64)[:features]
    shift = torch.tensor([0.0, 2.0, -30.0], dtype=torch.float64)[:features]
    return [torch.randn(rows, features, dtype=torch.float64) * scale + shift for _ in range(count)]


@pytest.mark.parametrize("warmup", [0, 5, 100_000])
def test_many_training_forwards_follow_the_formulas(warmup: int) -> None:
    norm, reference = BatchRenorm(3, warmup_steps=warmup).double(), Reference(3, warmup)
    for step, x in enumerate(batches(40)):
        expected = reference.train(x.numpy())
        np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
        assert int(norm.steps) == step + 1
    np.testing.assert_allclose(norm.running_mean.numpy(), reference.mean, rtol=1e-12)
    np.testing.assert_allclose(norm.running_var.numpy(), reference.var, rtol=1e-12)
    x = batches(1)[0]
    norm.eval()
    np.testing.assert_allclose(norm(x).detach().numpy(), reference.evaluate(x.numpy()), rtol=1e-9)
    assert int(norm.steps) == 40


@pytest.mark.parametrize(("eps_in_correction", "eps"), [(True, EPS), (False, 0.0)])
def test_eps_inside_the_correction_is_a_choice(eps_in_correction: bool, eps: float) -> None:
    norm = BatchRenorm(3, warmup_steps=2, eps_in_correction=eps_in_correction).double()
    reference = Reference(3, warmup=2, correction_eps=eps)
    other = BatchRenorm(3, warmup_steps=2, eps_in_correction=not eps_in_correction).double()
    start = torch.tensor([2e-4, 1e-2, 0.5], dtype=torch.float64)
    reference.var = start.numpy()
    for module in (norm, other):
        module.running_var.copy_(start)
    for x in batches(40):
        x = 0.1 * x
        actual, apart = norm(x).detach(), other(x).detach()
        np.testing.assert_allclose(actual.numpy(), reference.train(x.numpy()), rtol=1e-9, atol=1e-9)
    # The variance of the first feature is a tenth of eps, that of the last several hundred.
    distance = (actual - apart).abs().amax(0)
    assert distance[0] > 0.02
    assert distance[2] < 0.02


def test_without_eps_constant_features_stay_finite() -> None:
    norm = BatchRenorm(1, warmup_steps=0, eps_in_correction=False)
    norm.running_var.zero_()
    assert norm(torch.zeros(4, 1)).isfinite().all()
    assert norm(torch.ones(4, 1)).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_statistics_in_float32(training: bool, dtype: torch.dtype) -> None:
    norm, exact = BatchRenorm(3, warmup_steps=2), BatchRenorm(3, warmup_steps=2)
    torch_norm = nn.BatchNorm1d(3)
    for x in batches(5):
        half = x.to(dtype)
        for module in (norm, exact, torch_norm):
            module.train(training)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, theirs = norm(half), torch_norm(half)
        assert out.dtype == theirs.dtype == dtype
        torch.testing.assert_close(out, exact(half.float()).to(dtype))
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_var, exact.running_var)


def test_float32_under_autocast_stays_as_it_is() -> None:
    norm, x = BatchRenorm(3), batches(1)[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x).dtype == torch.float32


def test_a_module_of_half_precision_trains() -> None:
    norm, x = BatchRenorm(3, warmup_steps=1).bfloat16(), batches(1)[0].bfloat16()
    for _ in range(3):
        out = norm(x)
    out.float().square().sum().backward()
    assert out.dtype == norm.running_mean.dtype == torch.bfloat16
    assert norm.weight.grad.isfinite().all()


def test_the_correction_is_clipped_on_both_sides() -> None:
    norm = BatchRenorm(1, warmup_steps=0).double()
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        norm(1000 + 100 * x).detach(), torch.full_like(x, D_MAX) + R_MAX * x, rtol=1e-6, atol=0
    )
    norm.reset_parameters()
    torch.testing.assert_close(
        norm(-1000 + 0.01 * x).detach(),
        torch.full_like(x, -D_MAX) + x * 0.01 / (0.0001 + EPS) ** 0.5 / R_MAX,
    )


def test_correction_carries_no_gradient() -> None:
    """The gradient equals that of batch normalisation with r and d as constants."""
    norm = BatchRenorm(2, warmup_steps=0).double()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.3, -0.4]))
        norm.running_var.copy_(torch.tensor([2.0, 0.7]))
    std = norm.running_var.add(EPS).sqrt()
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 2, dtype=torch.float64)
    r = (x.var(0, correction=0).add(EPS).sqrt() / std).detach()
    d = ((x.mean(0) - norm.running_mean) / std).detach()
    plain = (x - x.mean(0)) / x.var(0, correction=0).add(EPS).sqrt()
    (expected,) = torch.autograd.grad((weight * (plain * r + d)).sum(), x)
    (actual,) = torch.autograd.grad((weight * norm(x)).sum(), x)
    torch.testing.assert_close(actual, expected)


def test_warm_up_equals_torch_batch_norm() -> None:
    norm = BatchRenorm(3)
    torch_norm = nn.BatchNorm1d(3, eps=EPS, momentum=0.01)
    for x in batches(5):
        torch.testing.assert_close(norm(x.float()), torch_norm(x.float()), rtol=1e-4, atol=1e-4)


def test_ensemble_members_are_normalised_apart() -> None:
    ensemble = BatchRenorm(3, ensemble_size=2, warmup_steps=2)
    singles = [BatchRenorm(3, warmup_steps=2) for _ in range(2)]
    for _ in range(5):
        x = torch.randn(2, 4, 5, 3) * 3 + 1
        expected = torch.stack([single(part) for single, part in zip(singles, x, strict=True)])
        torch.testing.assert_close(ensemble(x), expected)
    for index, single in enumerate(singles):
        torch.testing.assert_close(ensemble.running_mean[index], single.running_mean)
    ensemble.eval()
    torch.testing.assert_close(ensemble(x)[1], singles[1].eval()(x[1]))
    assert ensemble(x[:, 0, 0]).shape == (2, 3)


def test_counter_and_statistics_are_checkpointed() -> None:
    norm = BatchRenorm(3, warmup_steps=3)
    for x in batches(5):
        norm(x.float())
    other = BatchRenorm(3, warmup_steps=3)
    other.load_state_dict(norm.state_dict())
    x = batches(1)[0].float()
    torch.testing.assert_close(other(x), norm(x))
    assert int(other.steps) == 6


def test_evaluation_changes_nothing() -> None:
    norm = BatchRenorm(3).eval()
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    norm(torch.randn(4, 3))
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features must be"),
        ({"ensemble_size": 0}, "ensemble_size must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"eps": 0.0}, "eps > 0"),
        ({"r_max": 0.5}, "r_max >= 1"),
    ],
)
def test_bad_arguments_raise(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchRenorm(**{"num_features": 3, **arguments})


def test_bad_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"\[\*B, 3\], got \(4, 2\)"):
        BatchRenorm(3)(torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"\[2, \*B, 3\], got \(4, 3\)"):
        BatchRenorm(3, ensemble_size=2)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="needs a batch dimension"):
        BatchRenorm(3)(torch.randn(3))


def _on_a_rank(rank: int, store: str, values: Tensor, results: Any) -> None:
    """Sum of squares, its gradient and the statistics with this rank's half of the values."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    half = values.chunk(2)[rank].clone().requires_grad_()
    norm = BatchRenorm(3, warmup_steps=1).double()
    norm(half.detach())
    weights = torch.arange(1.0, 4.0)
    (norm(half) * weights).pow(3).sum().backward()
    results[rank] = [half.grad, norm.weight.grad, norm.running_mean, norm.running_var]
    dist.destroy_process_group()


def test_two_ranks_normalise_by_the_whole_batch(tmp_path: Path) -> None:
    values = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[4:] = 3 * values[4:] - 20  # ranks that see different things
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        arguments = [(rank, str(tmp_path / "store"), values, results) for rank in range(2)]
        ranks = [context.Process(target=_on_a_rank, args=one) for one in arguments]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
            assert process.exitcode == 0
        halves = [results[rank] for rank in range(2)]
    whole = values.clone().requires_grad_()
    norm = BatchRenorm(3, warmup_steps=1).double()
    norm(values)
    (norm(whole) * torch.arange(1.0, 4.0)).pow(3).sum().backward()
    torch.testing.assert_close(torch.cat([halves[0][0], halves[1][0]]), whole.grad)
    torch.testing.assert_close(halves[0][1] + halves[1][1], norm.weight.grad)
    for half in halves:
        torch.testing.assert_close(half[2], norm.running_mean)
        torch.testing.assert_close(half[3], norm.running_var)
