"""The step-size schedules: published numbers, bounds, names and callables."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffpolicy.sde import SCHEDULES, DenoisingProcess, schedule_factors

# Step sizes of the released DIME code for 16 steps, at initialisation.
DIME_STEP_SIZES = [
    0.0999845,
    0.0987991,
    0.0957698,
    0.0910112,
    0.0847033,
    0.0770847,
    0.0684436,
    0.0591067,
    0.0494273,
    0.0397714,
    0.0305043,
    0.0219765,
    0.0145105,
    0.0083888,
    0.0038429,
    0.0010447,
]


@pytest.mark.usefixtures("float64")
def test_cosine_schedule_gives_the_published_step_sizes() -> None:
    process = DenoisingProcess(3, 16, prior_std=2.5, schedule="cosine", step_size=0.1, friction=1.0)

    step_sizes = process.step_sizes()

    assert step_sizes.shape == (16, 3)
    expected = torch.tensor(DIME_STEP_SIZES, dtype=torch.float64)
    for dimension in range(3):
        torch.testing.assert_close(step_sizes[:, dimension], expected, atol=1e-7, rtol=0)
    assert step_sizes[:, 0].sum().item() == pytest.approx(0.844369, abs=1e-6)


def test_linear_schedule_falls_from_one_towards_the_floor() -> None:
    expected = torch.tensor([1.0, 0.7925, 0.585, 0.3775], dtype=torch.float64)
    torch.testing.assert_close(schedule_factors("linear", 4), expected)


def test_constant_schedule_is_one() -> None:
    assert schedule_factors("constant", 5).tolist() == [1.0] * 5


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(steps=st.integers(1, 300))
def test_factors_are_positive_at_most_one_and_never_increase(name: str, steps: int) -> None:
    factors = schedule_factors(name, steps)

    assert factors.shape == (steps,)
    assert factors.dtype == torch.float64
    assert (factors > 0).all()
    assert (factors <= 1).all()
    assert (factors.diff() <= 0).all()
    assert factors[0] > 0.99


def test_a_callable_is_a_schedule() -> None:
    process = DenoisingProcess(
        1, 3, schedule=lambda steps: torch.arange(steps, 0, -1), step_size=0.5, friction=2.0
    )
    torch.testing.assert_close(process.step_sizes().squeeze(-1), torch.tensor([0.75, 0.5, 0.25]))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"schedule must be one of .*'cosine'.*'linear'.*'cosin'"):
        schedule_factors("cosin", 4)


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_below_one_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"denoising_steps must be at least 1, got {steps}"):
        schedule_factors("linear", steps)


def test_a_callable_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\), got \(5,\)"):
        schedule_factors(lambda steps: torch.ones(steps + 1), 4)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_callable_with_unusable_values_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="schedule must return positive finite factors"):
        schedule_factors(lambda steps: torch.tensor([1.0, bad]), 2)
