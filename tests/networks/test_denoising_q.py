"""Q ensembles over the denoising MDP: what enters, what comes out, members apart."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffpolicy.networks import DenoisingQEnsemble, HLGauss, RunningNorm, StepEmbedding

OBSERVATION, ACTION, STEPS, SCALE = 3, 2, 4, 2.5


def make(**options: Any) -> DenoisingQEnsemble:
    torch.manual_seed(0)
    options = {"hidden_sizes": (8, 6), "ensemble_size": 3, "latent_scale": SCALE, **options}
    network = DenoisingQEnsemble(OBSERVATION, ACTION, STEPS, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def inputs(*batch: int) -> tuple[Tensor, Tensor, Tensor]:
    step = torch.randint(STEPS, (*batch, 1))
    return torch.randn(*batch, OBSERVATION), 2 * torch.randn(*batch, ACTION), step


@pytest.mark.parametrize("normalization", [None, "layer", "batch"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3, 5)])
def test_values_of_any_batch_are_those_of_its_rows(batch: tuple[int, ...], normalization) -> None:
    network = make(normalization=normalization)
    network(*inputs(20))  # batch statistics that are not zero and one
    network.eval()
    rows = inputs(*batch)
    value = network(*rows)
    assert value.shape == (*batch, 3, 1)
    alone = [network(*row) for row in zip(*(x.reshape(-1, x.shape[-1]) for x in rows), strict=True)]
    torch.testing.assert_close(value.reshape(-1, 3, 1), torch.stack(alone))


def test_latents_enter_squashed_and_scaled_beside_observation_and_step() -> None:
    normalizer = RunningNorm(OBSERVATION)
    normalizer.update(1 + 2 * torch.randn(20, OBSERVATION))
    embedding = StepEmbedding(STEPS, 4, 4, 3)
    network = make(normalizer=normalizer, embedding=embedding)
    seen: list[Tensor] = []

    def remember(module: nn.Module, found: tuple[Tensor]) -> None:
        seen.append(found[0])

    network.ensemble.net.register_forward_pre_hook(remember)
    observation, latent, step = inputs(7)
    network(observation, latent, step)
    expected = (normalizer(observation), embedding(step[:, 0]), latent.tanh(), latent / SCALE)
    torch.testing.assert_close(seen[0], torch.cat(expected, -1).expand(3, 7, -1))


def test_latents_that_act_alike_have_different_values() -> None:
    """Inside a chain it matters how far out a latent is, where tanh is flat."""
    observation, _, step = inputs(5)
    value = [make()(observation, torch.full((5, ACTION), x), step) for x in (20.0, 30.0)]
    assert float((value[0] - value[1]).detach().abs().min()) > 1e-2


def test_small_latents_are_told_apart_under_a_large_scale() -> None:
    network = make(latent_scale=1e6)
    observation, latent, step = inputs(5)
    moved = network(observation, latent + 0.5, step) - network(observation, latent, step)
    assert float(moved.detach().abs().amax()) > 1e-2


def test_an_hl_gauss_head_gives_the_mean_of_its_bins() -> None:
    network = make(support=HLGauss(-2.0, 6.0, 8))
    value, logits = network(*inputs(4, 5))
    assert value.shape == (4, 5, 3, 1)
    assert logits.shape == (4, 5, 3, 8)
    centres = torch.linspace(-1.5, 5.5, 8)
    torch.testing.assert_close(value, (logits.softmax(-1) @ centres).unsqueeze(-1))


def test_members_are_networks_of_their_own() -> None:
    rows = inputs(6)
    network = make()
    value = network(*rows)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(value[:, first], value[:, second], atol=1e-2)
    with torch.no_grad():
        for parameter in network.ensemble.parameters():
            parameter[1] += 1.0
    changed = network(*rows)
    torch.testing.assert_close(changed[:, [0, 2]], value[:, [0, 2]])
    assert bool((changed[:, 1] != value[:, 1]).all())


def test_steps_have_values_of_their_own() -> None:
    observation, latent, _ = inputs(1)
    step = torch.arange(STEPS).unsqueeze(-1)
    value = make()(observation.expand(STEPS, -1), latent.expand(STEPS, -1), step)
    difference = (value[:, None] - value[None]).abs().amin((-2, -1))
    apart = difference[~torch.eye(STEPS, dtype=torch.bool)]
    assert float(apart.detach().min()) > 1e-3


def test_gradients_reach_latents_and_every_parameter() -> None:
    network = make(normalization="layer")
    observation, latent, step = inputs(20)
    latent.requires_grad_()
    network(observation, latent, step).square().sum().backward()
    assert bool((latent.grad != 0).all())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "group"}, "normalization must be 'batch', 'layer' or None"),
        ({"ensemble_size": 0}, "ensemble_size and every layer width"),
        ({"warmup_steps": -1, "normalization": "batch"}, "warmup_steps=-1"),
    ],
)
def test_bad_arguments_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
