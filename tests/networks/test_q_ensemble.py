"""Q ensembles against single networks, and their initial weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from diffpolicy.networks import (
    BatchRenorm,
    CategoricalSupport,
    GaussianHead,
    HLGauss,
    QEnsemble,
)
from diffpolicy.networks.q_ensemble import EnsembleLayerNorm, EnsembleLinear


def randomise(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def single(network: QEnsemble, member: int, x: Tensor) -> Tensor:
    """One member, layer by layer with plain matrix products, batch layers in evaluation mode."""
    for layer in network.net:
        if isinstance(layer, EnsembleLinear):
            x = x @ layer.weight[member] + layer.bias[member]
        elif isinstance(layer, EnsembleLayerNorm):
            x = layer_norm(x, x.shape[-1:], layer.weight[member, 0], layer.bias[member, 0])
        elif isinstance(layer, BatchRenorm):
            x = (x - layer.running_mean[member]) / (layer.running_var[member] + 1e-3).sqrt()
            x = x * layer.weight[member] + layer.bias[member]
        else:
            x = relu(x)
    return x


@pytest.mark.parametrize("normalization", [None, "layer", "batch"])
@pytest.mark.parametrize("support", [None, CategoricalSupport(-3, 5, 11)])
def test_members_are_independent_networks(normalization, support) -> None:
    network = QEnsemble(
        3, 2, ensemble_size=3, hidden_sizes=(8, 6), normalization=normalization, support=support
    )
    randomise(network)
    for _ in range(3):
        network(torch.randn(20, 3), torch.randn(20, 2))
    network.eval()
    observation, action = torch.randn(4, 5, 3), torch.randn(4, 5, 2)
    out = network(observation, action)
    value, logits = (out, out) if support is None else out
    assert value.shape == (4, 5, 3, 1)
    for member in range(3):
        expected = single(network, member, torch.cat((observation, action), -1))
        torch.testing.assert_close(logits[..., member, :], expected)
        if support is not None:
            mean = (expected.softmax(-1) @ torch.linspace(-3, 5, 11)).unsqueeze(-1)
            torch.testing.assert_close(value[..., member, :], mean)
    alone = network(observation[0, 0], action[0, 0])
    torch.testing.assert_close(alone if support is None else alone[0], value[0, 0])


def test_actions_enter_in_unit_range() -> None:
    low, high = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])
    scaled = QEnsemble(3, 2, hidden_sizes=(8,), action_low=low, action_high=high)
    plain = QEnsemble(3, 2, hidden_sizes=(8,))
    plain.net.load_state_dict(scaled.net.state_dict())
    observation, unit = torch.randn(6, 3), 2 * torch.rand(6, 2) - 1
    action = low + (unit + 1) / 2 * (high - low)
    torch.testing.assert_close(scaled(observation, action), plain(observation, unit))


def test_only_batch_normalisation_ties_rows_together() -> None:
    observation, action = torch.randn(6, 3), torch.randn(6, 2)
    changed = torch.cat((observation[:3], observation[3:] + 1))
    for normalization in (None, "layer", "batch"):
        network = QEnsemble(3, 2, hidden_sizes=(8,), normalization=normalization)
        for training in (True, False):
            network.train(training)
            before, after = network(observation, action), network(changed, action)
            tied = normalization == "batch" and training
            assert torch.allclose(before[:3], after[:3]) == (not tied)


def test_initial_weights_are_truncated_lecun_normal_and_differ_between_members() -> None:
    layer = EnsembleLinear(2, 64, 400)
    std = 1 / 8
    assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
    assert layer.weight.mean().item() == pytest.approx(0, abs=4 * std / 51_200**0.5)
    assert layer.weight.abs().max().item() <= 2 * std / 0.8796 + 1e-4
    assert not bool(layer.bias.any())
    assert not torch.allclose(layer.weight[0], layer.weight[1])


def test_published_critic_has_its_parameter_count() -> None:
    """Two critics of 2 x 2048 with 101 atoms, batch renormalisation of input and activations."""
    network = QEnsemble(
        17, 6, hidden_sizes=(2048, 2048), normalization="batch", support=CategoricalSupport()
    )
    one = 2 * 23 + (23 + 1) * 2048 + (2048 + 1) * 2048 + 2 * 2 * 2048 + (2048 + 1) * 101
    assert sum(p.numel() for p in network.parameters()) == 2 * one


def test_support_range() -> None:
    support = CategoricalSupport(-200, 200)
    assert support.bins == 101
    torch.testing.assert_close(support.atoms, torch.arange(-200, 201, 4.0))
    atoms = support.atoms
    support.set_range(0, 10)
    assert atoms is support.atoms
    torch.testing.assert_close(atoms, torch.linspace(0, 10, 101))
    other = CategoricalSupport()
    other.load_state_dict(support.state_dict())
    assert float(other.atoms[-1]) == 10
    for bounds in ((1.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="minimum must be below maximum"):
            support.set_range(*bounds)
    with pytest.raises(ValueError, match="atoms must be at least 2"):
        CategoricalSupport(atoms=1)


def test_value_scale_is_a_factor_on_scalar_values() -> None:
    plain, scaled = QEnsemble(3, 2), QEnsemble(3, 2, value_scale=0.25)
    scaled.load_state_dict(plain.state_dict())
    rows = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(scaled(*rows), 0.25 * plain(*rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value_scale": 0.0}, "value_scale must be greater than 0, got 0.0"),
        ({"value_scale": 0.5, "support": HLGauss(-1, 1, 5)}, "for scalar heads, got 0.5.*HLGauss"),
        ({"normalization": "group"}, "normalization must be 'batch', 'layer' or None"),
        ({"ensemble_size": 0}, "ensemble_size and every layer width"),
        ({"hidden_sizes": (0,)}, "ensemble_size and every layer width"),
        ({"action_low": torch.zeros(2)}, "given together"),
        ({"action_low": torch.zeros(2), "action_high": torch.zeros(2)}, "low < high"),
        ({"action_low": torch.zeros(1), "action_high": torch.ones(1)}, r"must be \[2\]"),
    ],
)
def test_bad_arguments_raise(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QEnsemble(3, 2, **arguments)


def test_a_gaussian_head_reads_mean_and_standard_deviation() -> None:
    head = GaussianHead()
    critic = QEnsemble(3, 2, ensemble_size=2, hidden_sizes=(8,), support=head)
    value, outputs = critic(torch.randn(5, 3), torch.randn(5, 2))
    assert value.shape == (5, 2, 1)
    assert outputs.shape == (5, 2, 2)
    assert torch.equal(value, outputs[..., :1])
    std = head.std(outputs)
    torch.testing.assert_close(std, (1 + outputs[..., 1:].exp()).log())
    assert head.mean(outputs.half()).dtype == head.std(outputs.half()).dtype == torch.float32
