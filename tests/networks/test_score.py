"""The score network: start, scaling, clipping, conditioning, the published variant."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

from diffpolicy.networks import RunningNorm, ScoreNetwork, StepEmbedding

TANH_GELU = partial(nn.GELU, approximate="tanh")


@pytest.fixture
def network() -> ScoreNetwork:
    """A network whose output is not small, with statistics that are not the identity."""
    norm = RunningNorm(3)
    norm.update(5 + 2 * torch.randn(50, 3))
    return ScoreNetwork(
        2, 3, 4, hidden_sizes=(16, 16), normalizer=norm, latent_scale=2.5, init_std=1.0
    ).double()


def inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.randn(*shape, 2, dtype=torch.float64),
        torch.randint(4, shape),
        5 + torch.randn(*shape, 3, dtype=torch.float64),
    )


def test_starts_at_almost_zero_but_learns_from_the_first_step() -> None:
    network = ScoreNetwork(2, 3, 4, hidden_sizes=(32, 32))
    latent, step, observation = 10 * torch.randn(64, 2), torch.randint(4, (64,)), torch.randn(64, 3)

    score = network(latent, step, observation)

    assert score.shape == (64, 2)
    assert 0 < score.abs().max() < 1e-5
    score.sum().backward()
    assert (network.net[-1].weight.grad != 0).any()
    assert (network.net[-1].bias.grad == 64).all()


def test_output_is_clipped() -> None:
    network = ScoreNetwork(2, 3, 4, init_std=1.0, clip=0.5, hidden_sizes=(16,))
    score = network(100 * torch.randn(64, 2), torch.randint(4, (64,)), torch.randn(64, 3))
    assert score.abs().max() == 0.5
    assert score.min() == -0.5


def test_default_clip_is_that_of_the_paper() -> None:
    network = ScoreNetwork(1, 1, 4, hidden_sizes=())
    torch.nn.init.constant_(network.net[-1].weight, 1e6)
    score = network(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]), torch.zeros(2, 1))
    assert score.abs().tolist() == [[1e4], [1e4]]


def test_reset_parameters_restarts_the_last_layer() -> None:
    network = ScoreNetwork(2, 3, 4, hidden_sizes=(8,))
    torch.nn.init.ones_(network.net[-1].weight)
    torch.nn.init.ones_(network.net[-1].bias)
    network.reset_parameters()
    assert 0 < network.net[-1].weight.abs().max() < 1e-6
    assert (network.net[-1].bias == 0).all()


@pytest.mark.parametrize("shape", [(), (5,), (3, 5)])
def test_condition_equals_forward(network: ScoreNetwork, shape: tuple[int, ...]) -> None:
    latent, _, observation = inputs(*shape)
    score = network.condition(observation)
    for step in range(4):
        expected = network(latent, torch.full(shape, step), observation)
        assert expected.shape == (*shape, 2)
        torch.testing.assert_close(score(latent, step), expected)


@pytest.mark.parametrize("hidden_sizes", [(), (16,)])
def test_condition_passes_on_every_gradient(hidden_sizes: tuple[int, ...]) -> None:
    network = ScoreNetwork(2, 3, 4, hidden_sizes=hidden_sizes, latent_scale=2.5, init_std=1.0)
    network.double()
    latent, _, observation = inputs(5)
    wanted = (*network.parameters(), latent.requires_grad_(), observation.requires_grad_())
    weights = torch.arange(1.0, 5.0).double()
    score = network.condition(observation)
    whole = [score(latent, step) for step in range(4)]
    rows = [network(latent, torch.full((5,), step), observation) for step in range(4)]
    actual, expected = (
        torch.autograd.grad((weights * torch.stack(out, -1)).square().sum(), wanted)
        for out in (whole, rows)
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_condition_refuses_latents_of_another_batch(network: ScoreNetwork) -> None:
    latent, _, observation = inputs(5)
    score = network.condition(observation)
    for other in (latent[:1], latent.unsqueeze(0)):
        with pytest.raises(ValueError, match=r"latent must have the batch shape .* \(5,\), got"):
            score(other, 0)


def test_condition_takes_inputs_of_a_narrower_type_as_forward_does(network: ScoreNetwork) -> None:
    latent, observation = torch.randn(5, 2), 5 + torch.randn(5, 3)
    expected = network(latent, torch.full((5,), 1), observation)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(network.condition(observation)(latent, 1), expected)


def test_rows_of_mixed_steps_are_independent(network: ScoreNetwork) -> None:
    latent, step, observation = inputs(6)
    together = network(latent, step, observation)
    for row in range(6):
        alone = network(latent[row], step[row], observation[row])
        torch.testing.assert_close(together[row], alone)


def test_every_input_matters(network: ScoreNetwork) -> None:
    latent, step, observation = inputs(5)
    base = network(latent, step, observation)
    assert (network(latent + 0.1, step, observation) != base).all()
    assert (network(latent, (step + 1) % 4, observation) != base).all()
    assert (network(latent, step, observation + 0.1) != base).all()


def test_latent_and_observation_enter_standardised(network: ScoreNetwork) -> None:
    latent, step, observation = inputs(5)
    plain = ScoreNetwork(2, 3, 4, hidden_sizes=(16, 16), init_std=1.0).double()
    state = {
        name: value
        for name, value in network.state_dict().items()
        if not name.startswith("normalizer.")
    }
    plain.load_state_dict(state)
    expected = plain(latent / 2.5, step, network.normalizer(observation))
    torch.testing.assert_close(network(latent, step, observation), expected)


def test_own_embedding_is_used() -> None:
    embedding = StepEmbedding(4, out_features=5)
    network = ScoreNetwork(2, 3, 4, embedding=embedding)
    assert network.embedding is embedding
    assert network.net[0].in_features == 2 + 3 + 5


def test_gradients_reach_every_parameter_but_not_the_statistics(network: ScoreNetwork) -> None:
    before = {name: value.clone() for name, value in network.normalizer.state_dict().items()}
    network(*inputs(32)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    for name, value in network.normalizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def published_network(steps: int = 16) -> ScoreNetwork:
    options = {"activation": TANH_GELU, "initialization": "lecun"}
    embedding = StepEmbedding(steps, 256, 256, 256, **options)
    return ScoreNetwork(6, 17, steps, embedding=embedding, **options)


def test_published_variant_follows_its_formula() -> None:
    network = published_network(steps=5).double()
    with torch.no_grad():
        network.embedding.phases.normal_()
        network.net[-1].weight.normal_()
    latent, observation = torch.randn(5, 6).double(), torch.randn(5, 17).double()
    step = torch.arange(5)

    def linear(value: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        return value @ layer.weight.T + layer.bias

    def smooth(value: torch.Tensor) -> torch.Tensor:
        inner = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
        return 0.5 * value * (1 + inner.tanh())

    angle = step.unsqueeze(-1) * torch.linspace(0.1, 100, 256).double() + network.embedding.phases
    first, _, second = network.embedding.net
    hidden = linear(torch.cat((angle.sin(), angle.cos()), -1), first)
    hidden = torch.cat((latent, observation, linear(smooth(hidden), second)), -1)
    *layers, last = network.net[::2]
    assert len(layers) == 3
    for layer in layers:
        hidden = smooth(linear(hidden, layer))

    expected = linear(hidden, last)
    torch.testing.assert_close(network(latent, step, observation), expected, rtol=1e-9, atol=1e-9)
    exact = ScoreNetwork(6, 17, 5, embedding=network.embedding).double()
    exact.load_state_dict(network.state_dict())
    assert (exact(latent, step, observation) - expected).abs().max() > 1e-6


def assert_published_start(network: ScoreNetwork) -> None:
    *layers, last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 5
    for layer in layers:
        std = layer.in_features**-0.5
        largest = 2 * std / 0.8796
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(layer.weight.mean().item()) < 5 * std / layer.weight.numel() ** 0.5
        assert 0.99 * largest < layer.weight.abs().max() <= 1.0001 * largest
        assert (layer.bias == 0).all()
    assert torch.equal(last.weight, torch.full((6, 256), 1e-8))
    assert (last.bias == 0).all()
    assert (network.embedding.phases == 0).all()


def test_published_variant_starts_as_published() -> None:
    network = published_network()
    assert network.net[-1] is [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    assert_published_start(network)


def test_reset_parameters_follows_the_initialization() -> None:
    network = published_network()
    before = [parameter.clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    for module in reversed(list(network.modules())):  # children first, as TorchRL does
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert_published_start(network)
    drawn = [p for p in network.parameters() if p.ndim == 2][:-1]
    old = [p for p in before if p.ndim == 2][:-1]
    assert all(bool((new != previous).any()) for new, previous in zip(drawn, old, strict=True))


def test_defaults_draw_the_same_weights_in_the_same_order_as_ever() -> None:
    """Committed results depend on it: step embedding, then hidden layers, then the last layer."""
    torch.manual_seed(7)
    network = ScoreNetwork(2, 3, 4, hidden_sizes=(8,))
    torch.manual_seed(7)
    layers = [nn.Linear(64, 32), nn.Linear(32, 16), nn.Linear(21, 8), nn.Linear(8, 2)]
    nn.init.normal_(layers[-1].weight, std=1e-8)
    nn.init.zeros_(layers[-1].bias)

    own = [*network.embedding.net[::2], *network.net[::2]]
    for layer, expected in zip(own, layers, strict=True):
        assert torch.equal(layer.weight, expected.weight)
        assert torch.equal(layer.bias, expected.bias)
    latent, observation = torch.randn(5, 2), torch.randn(5, 3)
    step = torch.arange(5) % 4
    embedding = network.embedding(step)
    hidden = gelu(layers[2](torch.cat((latent, observation, embedding), -1)))
    assert torch.equal(network(latent, step, observation), layers[3](hidden))
