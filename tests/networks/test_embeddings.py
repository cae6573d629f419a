"""The embedding of the denoising step and the MLP builder."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

from diffpolicy.networks import ACTIVATIONS, ScoreNetwork, StepEmbedding, mlp


def test_table_follows_its_formula() -> None:
    embedding = StepEmbedding(7, frequencies=5, hidden_features=6, out_features=3).double()
    with torch.no_grad():
        embedding.phases.normal_()
    step = torch.arange(7, dtype=torch.float64).unsqueeze(-1)
    frequencies = torch.linspace(0.1, 100, 5).double()

    angle = frequencies * step + embedding.phases
    first, _, second = embedding.net
    hidden = torch.cat((angle.sin(), angle.cos()), -1) @ first.weight.T + first.bias
    expected = gelu(hidden) @ second.weight.T + second.bias

    torch.testing.assert_close(embedding.table(), expected)


def test_state_dict_keeps_frequencies_and_loads_states_without_them() -> None:
    source, target = StepEmbedding(4), StepEmbedding(4)
    with torch.no_grad():
        source.coefficients.mul_(0.3)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.table(), source.table())

    old = {
        k: v for k, v in StepEmbedding(4).state_dict().items() if k not in {"coefficients", "steps"}
    }
    before = target.coefficients.clone()
    target.load_state_dict(old)
    assert torch.equal(target.coefficients, before)
    assert torch.equal(target.net[0].weight, old["net.0.weight"])


def test_state_dict_of_another_number_of_steps_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for steps"):
        StepEmbedding(4).load_state_dict(StepEmbedding(8).state_dict())


def test_default_sizes_are_those_of_the_paper() -> None:
    embedding = StepEmbedding(4)
    assert embedding.coefficients.shape == (32,)
    assert embedding.coefficients[[0, -1]].tolist() == pytest.approx([0.1, 100.0])
    assert embedding.phases.requires_grad
    assert (embedding.phases == 0).all()
    assert embedding.table().shape == (4, 16)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integer_steps_look_up_the_table(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    embedding = StepEmbedding(6)
    step = torch.randint(6, shape, dtype=dtype)
    result = embedding(step)
    assert result.shape == (*shape, 16)
    torch.testing.assert_close(result, embedding.table()[step.long()])


def test_steps_have_different_embeddings() -> None:
    table = StepEmbedding(32).double().table()
    distance = torch.cdist(table, table) + torch.eye(32)
    assert distance.min() > 1e-3


def test_steps_past_the_last_are_refused() -> None:
    with pytest.raises(IndexError):
        StepEmbedding(4)(torch.tensor([4]))


def test_float_steps_are_refused() -> None:
    with pytest.raises(IndexError):
        StepEmbedding(4)(torch.tensor([1.0]))


@pytest.mark.parametrize("steps", [0, -1])
def test_too_few_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {steps}"):
        StepEmbedding(steps)


def test_mlp_layers() -> None:
    net = mlp(3, (5, 4), 2, nn.Tanh)
    assert [type(layer) for layer in net] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [layer.weight.shape for layer in net[::2]] == [(5, 3), (4, 5), (2, 4)]
    assert len(mlp(3, (), 2)) == 1


@pytest.mark.parametrize("sizes", [(0, (4,), 2), (3, (0,), 2), (3, (4,), 0)])
def test_mlp_refuses_empty_layers(sizes: tuple) -> None:
    with pytest.raises(ValueError, match="every layer width must be at least 1"):
        mlp(*sizes)


def test_mlp_can_start_truncated_lecun_normal() -> None:
    net = mlp(400, (300,), 200, initialization="lecun")
    for layer, fan_in in zip(net[::2], (400, 300), strict=True):
        assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
        assert layer.weight.abs().max() <= 2 * fan_in**-0.5 / 0.8796
        assert (layer.bias == 0).all()


def test_embedding_takes_activation_and_initialization() -> None:
    embedding = StepEmbedding(4, 200, 300, 10, activation=nn.Tanh, initialization="lecun")
    first, activation, second = embedding.net
    assert isinstance(activation, nn.Tanh)
    for layer in (first, second):
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        assert (layer.bias == 0).all()


def test_unknown_initialization_is_refused() -> None:
    with pytest.raises(ValueError, match="initialization must be 'torch' or 'lecun', got 'zeros'"):
        mlp(3, (4,), 2, initialization="zeros")


@pytest.mark.parametrize(("name", "approximate"), [("gelu", "none"), ("gelu_tanh", "tanh")])
def test_both_forms_of_gelu_have_a_name(name: str, approximate: str) -> None:
    values = torch.linspace(-4, 4, 101)
    embedding = StepEmbedding(4, activation=name)
    score = ScoreNetwork(2, 3, 4, hidden_sizes=(8, 8), activation=name)
    for net in (embedding.net, score.net, score.embedding.net, mlp(2, (3,), 1, name)):
        torch.testing.assert_close(net[1](values), gelu(values, approximate=approximate))
    erf, tanh = (ACTIVATIONS[key]()(values) for key in ("gelu", "gelu_tanh"))
    assert 1e-5 < (erf - tanh).abs().max() < 5e-4


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"activation must be one of \['gelu', 'gelu_tanh', 'mish'\]"
    ):
        mlp(2, (3,), 1, "relu")
