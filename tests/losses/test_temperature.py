"""Fixed and learned temperatures."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffpolicy.errors import ArgumentError
from objectives import FixedTemperature, LearnedMultiplier, LearnedTemperature, Temperature
from objectives.temperature import as_temperature


@given(value=st.floats(0, 100))
def test_fixed_temperature(value: float) -> None:
    temperature = FixedTemperature(value)
    assert float(temperature()) == pytest.approx(value)
    assert temperature.is_zero == (value == 0)
    assert not temperature.learned
    assert not temperature().requires_grad
    assert list(temperature.parameters()) == []


def test_fixed_temperature_has_nothing_to_learn() -> None:
    loss = FixedTemperature(0.3).loss(torch.randn(5, 1, requires_grad=True))
    assert torch.equal(loss, torch.zeros(5, 1))
    assert not loss.requires_grad


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_fixed_temperature_rejects(value: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be a finite number >= 0, got {value}"):
        FixedTemperature(value)


@given(initial=st.floats(1e-4, 10), target=st.floats(-20, 20), entropy=st.floats(-20, 20))
def test_learned_temperature_falls_iff_the_entropy_is_above_its_target(
    initial: float, target: float, entropy: float
) -> None:
    temperature = LearnedTemperature(initial, target_entropy=target)
    assert float(temperature()) == pytest.approx(initial, rel=1e-5)
    observed = torch.full((4, 1), entropy, requires_grad=True)
    loss = temperature.loss(observed)
    assert loss.shape == (4, 1)
    (gradient, none) = torch.autograd.grad(
        loss.mean(), (temperature.log_alpha, observed), allow_unused=True
    )
    assert none is None
    assert float(gradient) == pytest.approx(initial * (entropy - target), rel=1e-4, abs=1e-4)


def test_learned_temperature_finds_its_target() -> None:
    """With entropy falling in the temperature's direction, it settles where H = H_target."""
    temperature = LearnedTemperature(1.0, target_entropy=-1.0)
    optimizer = torch.optim.Adam(temperature.parameters(), 0.05)
    for _ in range(300):
        entropy = temperature().log().reshape(1, 1)  # more temperature, more entropy
        optimizer.zero_grad()
        temperature.loss(entropy).mean().backward()
        optimizer.step()
    assert float(temperature()) == pytest.approx(math.exp(-1), rel=0.05)


def test_learned_temperature_value_is_detached_and_never_zero() -> None:
    temperature = LearnedTemperature(0.3, target_entropy=-1.0)
    assert not temperature().requires_grad
    assert temperature.learned
    assert not temperature.is_zero
    assert [name for name, _ in temperature.named_parameters()] == ["log_alpha"]


@pytest.mark.parametrize("initial", [0.0, -1.0, math.inf, math.nan])
def test_learned_temperature_rejects_initial(initial: float) -> None:
    with pytest.raises(ValueError, match=r"initial=.* must be between 1e-06 and 10000"):
        LearnedTemperature(initial, target_entropy=-1.0)


@pytest.mark.parametrize("target", [math.inf, math.nan])
def test_learned_temperature_rejects_target(target: float) -> None:
    with pytest.raises(ValueError, match=r"target_entropy=.* must be finite"):
        LearnedTemperature(1.0, target_entropy=target)


@pytest.mark.parametrize(
    "temperature", [FixedTemperature(0.3), LearnedTemperature(0.3, target_entropy=-1.0)]
)
def test_copies_and_state(temperature: Temperature) -> None:
    for other in (copy.deepcopy(temperature), pickle.loads(pickle.dumps(temperature))):
        assert float(other()) == pytest.approx(0.3)
        assert other.is_zero == temperature.is_zero
    fresh = copy.deepcopy(temperature)
    for value in fresh.state_dict().values():
        value.add_(1)
    fresh.load_state_dict(temperature.state_dict(), strict=True)
    assert float(fresh()) == pytest.approx(0.3)
    assert temperature.double()().dtype == torch.float64


def test_as_temperature() -> None:
    for number in (0, 0.25, 2):
        fixed = as_temperature(number)
        assert isinstance(fixed, FixedTemperature)
        assert float(fixed()) == number
    module = LearnedTemperature(1.0, target_entropy=0.0)
    assert as_temperature(module) is module


@pytest.mark.parametrize("value", ["0.1", None, torch.tensor(0.1)])
def test_as_temperature_rejects(value: object) -> None:
    with pytest.raises(TypeError, match="temperature must be a number or a Temperature"):
        as_temperature(value)


# ---------------------------------------------------------------------------------------------
# Bounds

BUILDERS = {
    # What drives it up, and what down.
    "temperature": (lambda initial: LearnedTemperature(initial, 0.0, (0.1, 10.0)), -1.0, 1.0),
    "multiplier": (lambda initial: LearnedMultiplier(initial, 1.0, (0.1, 10.0)), 2.0, 0.5),
}


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(("side", "bound"), [(1, 10.0), (-1, 0.1)])
def test_a_coefficient_stops_at_its_bound_and_comes_back(
    kind: str, side: int, bound: float
) -> None:
    build, up, down = BUILDERS[kind]
    outwards, inwards = (up, down) if side > 0 else (down, up)
    coefficient = build(1.0)
    optimizer = torch.optim.Adam(coefficient.parameters(), 0.05)

    def train(value: float, steps: int) -> list[float]:
        values = []
        for _ in range(steps):
            optimizer.zero_grad()
            coefficient.loss(torch.full((4, 1), value)).mean().backward()
            optimizer.step()
            values.append(float(coefficient()))
        return values

    assert coefficient.at_bound() == 0
    values = train(outwards, 500)
    assert values == sorted(values, reverse=side < 0)
    assert values[-1] == pytest.approx(bound)
    assert coefficient.at_bound() == side
    assert any(0.5 < value < 2.0 for value in train(inwards, 100))


@pytest.mark.parametrize("kind", BUILDERS)
def test_single_rows_beyond_the_bound_do_not_decide(kind: str) -> None:
    """At the upper bound the mean counts: rows that would lower the value must not bias it."""
    build, up, down = BUILDERS[kind]
    coefficient = build(10.0)
    mostly_up = torch.tensor([[up], [up], [up], [up], [down]])
    coefficient.loss(mostly_up).mean().backward()
    assert [float(parameter.grad) for parameter in coefficient.parameters()] == [0.0]


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_coefficient_that_is_not_finite_shows(kind: str, value: float) -> None:
    coefficient = BUILDERS[kind][0](1.0)
    for parameter in coefficient.parameters():
        parameter.data.fill_(value)
    assert math.isnan(float(coefficient()))
    assert coefficient.loss(torch.zeros(3, 1)).isnan().all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.1, math.inf)])
def test_bounds_that_are_none(bounds: tuple[float, float]) -> None:
    with pytest.raises(ArgumentError, match=r"bounds=.* must be a positive and a greater finite"):
        LearnedTemperature(1.0, -1.0, bounds)


@pytest.mark.parametrize(
    ("argument", "initial", "bound"), [("initial_multiplier", 0.0, 1.0), ("bound", 1.0, 0.0)]
)
def test_multiplier_rejects(argument: str, initial: float, bound: float) -> None:
    with pytest.raises(ArgumentError, match=f"{argument}=0.0 must be"):
        LearnedMultiplier(initial, bound)
