"""The score network: start, scaling, clipping, conditioning."""

import pytest
import torch

from diffpolicy.networks import RunningNorm, ScoreNetwork, StepEmbedding


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
