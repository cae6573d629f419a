"""Squashing into asymmetric bounds, and the checks of action specs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrl.data import Bounded, Categorical, OneHot, Unbounded

from diffpolicy.actors import ActionClip, ActionMap, ActionSquash

finite = st.floats(-1e3, 1e3, width=32)


@given(
    low=st.lists(finite, min_size=1, max_size=4),
    width=st.floats(1e-2, 1e3),
    latent=st.one_of(finite, st.just(math.inf), st.just(-math.inf)),
)
def test_actions_are_never_outside_the_bounds(
    low: list[float], width: float, latent: float
) -> None:
    lower = torch.tensor(low)
    upper = lower + width
    squash = ActionSquash(lower, upper)

    action = squash(torch.full_like(lower, latent))

    assert Bounded(lower, upper).is_in(action)
    if abs(latent) > 20:
        bound = upper if latent > 0 else lower
        torch.testing.assert_close(action, bound, atol=1e-4, rtol=1e-6)


def test_extremes_of_many_bounds_are_members_of_the_spec() -> None:
    low = 3 * torch.randn(20_000)
    high = low + 5 * torch.rand(20_000) + 1e-3
    squash, spec = ActionSquash(low, high), Bounded(low, high)
    for value in (-50.0, 50.0):
        assert spec.is_in(squash(torch.full((20_000,), value)))


def test_map_is_tanh_and_an_affine_map_per_dimension() -> None:
    squash = ActionSquash(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])).double()
    latent = torch.randn(5, 3, 2, dtype=torch.float64)
    expected = latent.tanh() * torch.tensor([2.0, 0.5]) + torch.tensor([0.0, 0.5])
    torch.testing.assert_close(squash(latent), expected)
    assert squash.action_dim == 2


@pytest.mark.parametrize("kind", ["squash", "clip", "clip, not scaled"])
def test_maps_agree_with_their_inverse_and_their_derivative(kind: str) -> None:
    low, high = torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 5.0])
    maps: dict[str, ActionMap] = {
        "squash": ActionSquash(low, high),
        "clip": ActionClip(low, high),
        "clip, not scaled": ActionClip(low, high, scaled=False),
    }
    squash = maps[kind].double()
    action = squash.from_unit(1.8 * torch.rand(2, dtype=torch.float64) - 0.9)
    latent = squash.inverse(action)
    torch.testing.assert_close(squash(latent), action)
    jacobian = torch.autograd.functional.jacobian(lambda x: squash.to_unit(squash(x)), latent)
    assert isinstance(jacobian, torch.Tensor)
    torch.testing.assert_close(squash.log_det(latent), jacobian.logdet().unsqueeze(0))
    bounds = squash.latent_bounds
    assert (bounds is None) == (kind == "squash")
    if bounds is not None:
        torch.testing.assert_close(
            torch.stack(list(map(squash, bounds))), torch.stack([low, high]).double()
        )
        assert torch.equal(squash(bounds[1] + 9), squash(bounds[1]))


def test_gradient_inside_the_bounds_is_that_of_the_map() -> None:
    squash = ActionSquash(torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.3])).double()
    latent = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squash, latent)


def test_bounds_travel_in_the_state_dict() -> None:
    source = ActionSquash(torch.tensor([-3.0]), torch.tensor([5.0]))
    target = ActionSquash(torch.tensor([-1.0]), torch.tensor([1.0]))
    target.load_state_dict(source.state_dict())
    assert target(torch.tensor([50.0])).item() == 5.0


def test_from_spec_reads_the_bounds() -> None:
    squash = ActionSquash.from_spec(Bounded(torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.3])))
    action = squash(torch.tensor([[-99.0, 99.0], [99.0, -99.0]]))
    torch.testing.assert_close(action, torch.tensor([[-2.0, 0.3], [2.0, 0.1]]))


@pytest.mark.parametrize("agents", [(3,), (2, 3)])
def test_agents_with_equal_bounds_share_them(agents: tuple[int, ...]) -> None:
    low, high = torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.3])
    squash = ActionSquash.from_spec(Bounded(low.expand(*agents, 2), high.expand(*agents, 2)))
    assert torch.equal(squash.low, low)
    assert torch.equal(squash.high, high)
    assert squash(torch.randn(7, *agents, 2)).shape == (7, *agents, 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Categorical(4), "action_spec must be a bounded continuous spec .* got Categorical"),
        (OneHot(4), "got OneHot"),
        (Unbounded((2,)), "got Unbounded.*finite bounds"),
        (Bounded(0, 3, (2,), dtype=torch.int64), "with dtype torch.int64"),
        (Bounded(-1.0, 1.0, ()), r"must have shape \[A\] or \[\*agents, A\], got \(\)"),
        (
            Bounded(torch.tensor([[-1.0], [-2.0]]), torch.ones(2, 1)),
            "the same bounds for all agents.*ActionScaling",
        ),
        (Bounded(-1.0, math.inf, (2,)), r"must have finite bounds, got .*high=\[inf, inf\]"),
    ],
)
def test_other_specs_are_refused(spec: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSquash.from_spec(spec)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([0.0], [0.0], "low < high in every action dimension, got low=.*0.0.* and high=.*0.0"),
        ([0.0, 1.0], [1.0, 0.0], "low < high in every action dimension"),
        ([-math.inf], [1.0], "finite with low < high"),
        ([0.0], [1.0, 2.0], r"same length, got shapes \(1,\) and \(2,\)"),
        (0.0, 1.0, "one-dimensional"),
    ],
)
def test_unusable_bounds_are_refused(low: object, high: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSquash(torch.tensor(low), torch.tensor(high))
