"""Soft targets and the C51 projection: identities, known cases, and a loop as a reference."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from objectives import functional as fn

finite = st.floats(-30, 30)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Target locations, their probabilities, and atoms, in float64."""
    count = draw(st.integers(2, 12))
    low = draw(st.floats(-20, 20))
    atoms = torch.linspace(low, low + draw(st.floats(0.1, 30)), count, dtype=torch.float64)
    rows = draw(st.integers(1, 4))
    cells = st.lists(finite, min_size=count * rows, max_size=count * rows)
    locations = torch.tensor(draw(cells), dtype=torch.float64).reshape(rows, count)
    weights = torch.tensor(draw(cells), dtype=torch.float64).reshape(rows, count)
    return locations, (weights / 10).softmax(-1), atoms


def project_by_loop(locations: Tensor, probabilities: Tensor, atoms: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 1707.06887 with hat functions, one number at a time."""
    width = float(atoms[1] - atoms[0])
    out = torch.zeros_like(probabilities)
    for row in range(len(locations)):
        for location, probability in zip(locations[row], probabilities[row], strict=True):
            clipped = min(max(float(location), float(atoms[0])), float(atoms[-1]))
            for index, atom in enumerate(atoms):
                out[row, index] += probability * max(0.0, 1 - abs(clipped - float(atom)) / width)
    return out


@given(problems())
def test_projection_equals_the_loop(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.testing.assert_close(
        fn.project_categorical(*problem), project_by_loop(*problem), rtol=0, atol=1e-9
    )


@given(problems())
def test_projection_conserves_mass_and_stays_positive(problem) -> None:
    projected = fn.project_categorical(*problem)
    assert bool((projected >= 0).all())
    torch.testing.assert_close(projected.sum(-1), torch.ones(len(projected), dtype=torch.float64))


@given(problems())
def test_projection_keeps_the_mean_of_what_is_not_clipped(problem) -> None:
    locations, probabilities, atoms = problem
    clipped = locations.clamp(atoms[0], atoms[-1])
    projected = fn.project_categorical(locations, probabilities, atoms)
    torch.testing.assert_close((projected * atoms).sum(-1), (probabilities * clipped).sum(-1))
    mass = fn.clipped_mass(locations, probabilities, atoms).squeeze(-1)
    inside = (locations == clipped).all(-1)
    assert not bool(mass[inside].any())
    width = float(atoms[1] - atoms[0])
    far = ((locations - clipped).abs() > 0.01 * width).any(-1)
    assert bool((mass[far] > 0).all())


@given(problems())
def test_projection_is_linear_in_the_probabilities(problem) -> None:
    """So the mean of two critics may be projected once."""
    locations, probabilities, atoms = problem
    other = probabilities.flip(-1)
    mean = fn.project_categorical(locations, (probabilities + other) / 2, atoms)
    separate = [fn.project_categorical(locations, p, atoms) for p in (probabilities, other)]
    torch.testing.assert_close(mean, sum(separate) / 2)


def one_hot(atoms: Tensor, index: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor([index]), len(atoms)).to(atoms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_rewards_of_terminal_rows_are_exact(dtype: torch.dtype) -> None:
    atoms = torch.linspace(-200, 200, 101, dtype=dtype)
    uniform = torch.full((1, 101), 1 / 101, dtype=dtype)
    cases = {8.0: 52, 0.0: 50, -200.0: 0, 200.0: 100, 1e6: 100, -1e6: 0}
    for reward, index in cases.items():
        target = fn.soft_target(
            atoms,
            torch.tensor([[reward]], dtype=dtype),
            torch.tensor([[True]]),
            torch.tensor([[float("nan")]], dtype=dtype),  # the next state does not matter
            discount=torch.tensor(0.99, dtype=dtype),
            temperature=torch.tensor(0.3, dtype=dtype),
        )
        assert target.shape == (1, 101)
        projected = fn.project_categorical(target, uniform, atoms)
        torch.testing.assert_close(projected, one_hot(atoms, index), rtol=0, atol=1e-5)
    between = fn.project_categorical(torch.full((1, 101), 9.0, dtype=dtype), uniform, atoms)
    expected = 0.75 * one_hot(atoms, 52) + 0.25 * one_hot(atoms, 53)
    torch.testing.assert_close(between, expected, rtol=0, atol=1e-5)


def test_soft_target_with_numbers() -> None:
    target = fn.soft_target(
        torch.tensor([[5.0], [5.0]]),
        torch.tensor([[1.0], [1.0]]),
        torch.tensor([[False], [True]]),
        torch.tensor([[-2.0], [-2.0]]),
        discount=torch.tensor(0.5),
        temperature=torch.tensor(0.25),
    )
    torch.testing.assert_close(target, torch.tensor([[1 + 0.5 * (5 + 0.25 * 2)], [1.0]]))


def test_categorical_loss_with_a_loop() -> None:
    logits = torch.randn(3, 2, 5, dtype=torch.float64)
    target = torch.randn(3, 5, dtype=torch.float64).softmax(-1)
    loss, entropy = fn.categorical_loss(logits, target, 0.005)
    for row in range(3):
        expected, expected_entropy = 0.0, 0.0
        for critic in range(2):
            q = logits[row, critic].softmax(-1)
            for t, p in zip(target[row].tolist(), q.tolist(), strict=True):
                expected += -t * math.log(p) + 0.005 * p * math.log(p)
                expected_entropy -= p * math.log(p) / 2
        assert loss[row].item() == pytest.approx(expected, rel=1e-12)
        assert entropy[row].item() == pytest.approx(expected_entropy, rel=1e-12)


def test_value_range_reproduces_the_published_ranges() -> None:
    assert fn.symmetric_value_range(1.0, 0.99) == pytest.approx(200)
    assert fn.symmetric_value_range(8.0, 0.99) == pytest.approx(1600)
    for bound in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="reward_bound"):
            fn.symmetric_value_range(bound, 0.99)
    with pytest.raises(ValueError, match="gamma"):
        fn.symmetric_value_range(1.0, 1.0)


def test_shapes_that_do_not_match_raise() -> None:
    atoms = torch.linspace(-1, 1, 5)
    with pytest.raises(ValueError, match="must end in 5 atoms"):
        fn.project_categorical(torch.zeros(2, 4), torch.zeros(2, 4), atoms)
    with pytest.raises(ValueError, match="shapes must be equal"):
        fn.project_categorical(torch.zeros(2, 5), torch.zeros(3, 5), atoms)
    with pytest.raises(ValueError, match="shapes must be equal"):
        fn.categorical_loss(torch.zeros(2, 2, 5), torch.zeros(2, 4), 0.0)
    flags, one = torch.zeros(3, dtype=torch.bool), torch.tensor(1.0)
    with pytest.raises(ValueError, match="shapes must be equal"):
        fn.soft_target(
            atoms, torch.zeros(3, 1), flags, torch.zeros(3, 1), discount=one, temperature=one
        )
