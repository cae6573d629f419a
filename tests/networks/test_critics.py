"""The HL-Gauss head, and value networks with both heads."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffpolicy.networks import CategoricalSupport, DenoisingValueNetwork, HLGauss, RunningNorm

SUPPORT = (-5.0, 15.0, 41)
WIDTH = 20.0 / 41


def head(dtype: torch.dtype = torch.float64) -> HLGauss:
    return HLGauss(*SUPPORT).to(dtype)


@given(target=st.floats(-1e4, 1e4), double=st.booleans())
def test_target_probabilities_are_a_histogram(target: float, double: bool) -> None:
    dtype = torch.float64 if double else torch.float32
    probabilities = head(dtype).target_probabilities(torch.tensor([target], dtype=dtype))
    assert probabilities.shape == (41,)
    assert (probabilities >= 0).all()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)


@given(target=st.floats(-3.0, 13.0))
def test_mean_of_the_target_histogram_is_the_target_inside_the_support(target: float) -> None:
    support = head()
    probabilities = support.target_probabilities(torch.tensor([target], dtype=torch.float64))
    mean = support.mean(probabilities.clamp_min(1e-300).log())
    assert mean.item() == pytest.approx(target, abs=0.01 * WIDTH)


def test_mean_is_that_of_the_bin_centres() -> None:
    support = HLGauss(0.0, 4.0, 2).double()
    logits = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64).clamp_min(1e-30).log()
    torch.testing.assert_close(support.mean(logits), torch.tensor([[2.5], [1.0]]).double())


def test_histogram_is_the_gaussian_mass_of_each_bin() -> None:
    support = head()
    probabilities = support.target_probabilities(torch.tensor([5.3], dtype=torch.float64))
    torch.testing.assert_close(support.edges, torch.linspace(-5, 15, 42).double())
    center = torch.tensor(5.3, dtype=torch.float64)
    mass = torch.distributions.Normal(center, 0.75 * WIDTH).cdf(support.edges).diff()
    torch.testing.assert_close(probabilities, mass, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("target", "edge"), [(1e6, 15.0), (-1e6, -5.0), (15.5, 15.0)])
def test_targets_are_clipped_to_the_support(target: float, edge: float) -> None:
    support = head()
    outside, at_edge = (
        support.target_probabilities(torch.tensor([value], dtype=torch.float64))
        for value in (target, edge)
    )
    assert torch.equal(outside, at_edge)
    at = -1 if edge > 0 else 0
    assert outside.argmax().item() == at % 41


def test_targets_outside_the_support() -> None:
    target = torch.tensor([[-6.0], [-5.0], [0.0], [15.0], [15.1]], dtype=torch.float64)
    assert head().outside(target).flatten().tolist() == [True, False, False, False, True]


@given(seed=st.integers(0, 2**20), target=st.floats(-6.0, 16.0))
def test_cross_entropy_is_smallest_at_the_target_histogram(seed: int, target: float) -> None:
    support = head()
    goal = torch.tensor([target], dtype=torch.float64)
    best = support.target_probabilities(goal).clamp_min(1e-300).log().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    other = best.detach() + torch.randn(41, dtype=torch.float64, generator=generator)

    loss = support.loss(best, goal)
    (gradient,) = torch.autograd.grad(loss.sum(), best)

    assert loss.item() < support.loss(other, goal).item()
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_gradient_descent_on_the_loss_finds_the_target() -> None:
    support, target = head(), torch.tensor([[2.2], [-4.0]], dtype=torch.float64)
    logits = torch.zeros(2, 41, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        support.loss(logits, target).sum().backward()
        optimizer.step()
    torch.testing.assert_close(support.mean(logits), target, atol=0.1 * WIDTH, rtol=0)


@pytest.mark.parametrize("scale", [1e4, -1e4, 1e30])
def test_loss_and_gradient_are_finite_for_extreme_logits(scale: float) -> None:
    support = head(torch.float32)
    logits = (torch.linspace(-1, 1, 41) * scale).requires_grad_()
    loss = support.loss(logits, torch.tensor([0.0]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0.1


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_head_shapes(shape: tuple[int, ...]) -> None:
    support = head()
    logits = torch.randn(*shape, 41, dtype=torch.float64)
    target = torch.randn(*shape, 1, dtype=torch.float64)
    assert support.target_probabilities(target).shape == (*shape, 41)
    assert support.mean(logits).shape == (*shape, 1)
    assert support.loss(logits, target).shape == (*shape, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0, 10), "minimum must be below maximum, got 1.0 and 1.0"),
        ((math.nan, 1.0, 10), "minimum must be below maximum"),
        ((0.0, 1.0, 1), "bins must be at least 2, got 1"),
        ((0.0, 1.0, 10, 0.0), "sigma_ratio must be positive, got 0.0"),
        ((0.0, 1.0, 10, 0.75, "middle"), "ends must be one of .*'centers'.*got 'middle'"),
    ],
)
def test_bad_supports_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HLGauss(*arguments)


def rewritten(target: float, logits: list[float], ends: str) -> tuple[list[float], float, float]:
    """Histogram, mean and cross-entropy for five bins on [-1, 3], in plain Python."""
    width = 4 / 5 if ends == "edges" else 4 / 4
    first = -1 + width / 2 if ends == "edges" else -1
    centers = [first + width * k for k in range(5)]
    value, sigma = min(max(target, -1), 3), 0.75 * width

    def below(edge: float) -> float:
        return 0.5 * (1 + math.erf((edge - value) / (sigma * math.sqrt(2))))

    mass = [below(c + width / 2) - below(c - width / 2) for c in centers]
    mass = [part / sum(mass) for part in mass]
    total = sum(math.exp(x) for x in logits)
    shares = [math.exp(x) / total for x in logits]
    mean = sum(share * c for share, c in zip(shares, centers, strict=True))
    return mass, mean, -sum(m * math.log(share) for m, share in zip(mass, shares, strict=True))


@pytest.mark.parametrize("ends", ["edges", "centers"])
@pytest.mark.parametrize("target", [-7.0, -1.0, -0.2, 1.0, 2.9, 3.0, 3.1])
def test_both_kinds_of_ends_follow_an_independent_rewrite(ends: str, target: float) -> None:
    support = HLGauss(-1.0, 3.0, 5, ends=ends).double()
    logits = [0.3, -1.0, 0.7, 0.1, -0.4]
    mass, mean, loss = rewritten(target, logits, ends)
    goal, predicted = torch.tensor([target]).double(), torch.tensor(logits).double()
    assert support.target_probabilities(goal).tolist() == pytest.approx(mass, abs=1e-6)
    assert support.mean(predicted).item() == pytest.approx(mean, abs=1e-6)
    assert support.loss(predicted, goal).item() == pytest.approx(loss, abs=1e-6)
    assert support.outside(goal).item() == (not -1 <= target <= 3)


def test_centres_at_the_ends_make_the_ends_exact() -> None:
    certain = torch.tensor([0.0, 0.0, 0.0, 0.0, 80.0])
    assert HLGauss(-1.0, 3.0, 5, ends="centers").mean(certain).item() == pytest.approx(3.0)
    assert HLGauss(-1.0, 3.0, 5).mean(certain).item() == pytest.approx(2.6)


@pytest.mark.parametrize("head_", [HLGauss(-200.0, 200.0, 101), CategoricalSupport()])
def test_heads_are_exact_under_autocast(head_: HLGauss | CategoricalSupport) -> None:
    logits = torch.randn(6, 101).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = head_.mean(logits)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, head_.mean(logits.float()))


def test_hl_gauss_loss_is_exact_under_autocast() -> None:
    support, logits = HLGauss(-200.0, 200.0, 101), torch.randn(6, 101).bfloat16()
    target = torch.linspace(-150, 150, 6).unsqueeze(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = support.loss(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, support.loss(logits.float(), target))
    half = support.target_probabilities(target.bfloat16())
    torch.testing.assert_close(half, support.target_probabilities(target.bfloat16().float()))


def test_state_dict_keeps_the_support_and_loads_states_without_it() -> None:
    source = DenoisingValueNetwork(3, 2, 4, hidden_sizes=(8,), support=HLGauss(-1.0, 3.0, 5))
    target = DenoisingValueNetwork(3, 2, 4, hidden_sizes=(8,), support=HLGauss(-9.0, 9.0, 5))
    inputs = torch.randn(6, 3), torch.randn(6, 2), torch.randint(4, (6, 1))
    saved = source.state_dict()
    target.load_state_dict(saved)
    torch.testing.assert_close(target(*inputs), source(*inputs))
    goal = torch.tensor([1.2])
    expected = source.support.target_probabilities(goal)
    torch.testing.assert_close(target.support.target_probabilities(goal), expected)

    old = {name: value for name, value in saved.items() if name != "support.edges"}
    other = DenoisingValueNetwork(3, 2, 4, hidden_sizes=(8,), support=HLGauss(-1.0, 3.0, 5))
    other.load_state_dict(old)
    torch.testing.assert_close(other(*inputs), source(*inputs))


def test_default_support_is_that_of_the_paper() -> None:
    support = HLGauss()
    assert support.bins == 151
    assert support.edges[[0, -1]].tolist() == [-100.0, 200.0]
    assert support.sigma.item() == pytest.approx(0.75 * 300 / 151)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("categorical", [False, True])
def test_value_network_shapes(shape: tuple[int, ...], categorical: bool) -> None:
    support = HLGauss(*SUPPORT) if categorical else None
    network = DenoisingValueNetwork(3, 2, 4, hidden_sizes=(8,), support=support)
    inputs = torch.randn(*shape, 3), torch.randn(*shape, 2), torch.randint(4, (*shape, 1))

    out = network(*inputs)

    if not categorical:
        assert out.shape == (*shape, 1)
        return
    value, logits = out
    assert value.shape == (*shape, 1)
    assert logits.shape == (*shape, 41)
    torch.testing.assert_close(value, support.mean(logits))


def test_value_depends_on_observation_latent_and_step() -> None:
    network = DenoisingValueNetwork(3, 2, 4, hidden_sizes=(16, 16)).double()
    observation, latent = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    step = torch.arange(6).remainder(4).unsqueeze(-1)
    base = network(observation, latent, step)
    assert (network(observation + 0.1, latent, step) != base).all()
    assert (network(observation, latent + 0.1, step) != base).all()
    assert (network(observation, latent, (step + 1) % 4) != base).all()


def test_inputs_of_the_value_network_are_standardised() -> None:
    norm = RunningNorm(3)
    norm.update(4 + 2 * torch.randn(50, 3))
    scaled = DenoisingValueNetwork(3, 2, 4, hidden_sizes=(8,), normalizer=norm, latent_scale=2.0)
    plain = DenoisingValueNetwork(3, 2, 4, hidden_sizes=(8,))
    plain.net.load_state_dict(scaled.net.state_dict())
    plain.embedding.load_state_dict(scaled.embedding.state_dict())
    observation, latent = 4 + torch.randn(6, 3), torch.randn(6, 2)
    step = torch.randint(4, (6, 1))
    torch.testing.assert_close(
        scaled(observation, latent, step), plain(norm(observation), latent / 2, step)
    )


def test_categorical_value_network_learns_a_constant() -> None:
    support = HLGauss(*SUPPORT)
    network = DenoisingValueNetwork(2, 1, 3, hidden_sizes=(16,), support=support)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    inputs = torch.randn(32, 2), torch.randn(32, 1), torch.randint(3, (32, 1))
    target = torch.full((32, 1), 3.7)
    for _ in range(150):
        optimizer.zero_grad()
        support.loss(network(*inputs)[1], target).mean().backward()
        optimizer.step()
    assert (network(*inputs)[0] - target).abs().max().item() < WIDTH
