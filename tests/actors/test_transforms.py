"""torch.compile, vmap over parameters and functional calls."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import DenoisingActor, chain_rows

RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
Actor = Callable[..., DenoisingActor]
Data = Callable[..., TensorDict]


@pytest.fixture
def clean_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
def test_compiled_actor_is_one_graph_and_equals_eager(
    make_actor: Actor, make_data: Data, exploration: ExplorationType
) -> None:
    actor = make_actor(return_chain=True, noise_key="noise")
    data = make_data(5, noise=True)
    compiled = torch.compile(actor, fullgraph=True, backend="aot_eager")

    with set_exploration_type(exploration), torch.no_grad():
        expected, out = actor(data.clone()), compiled(data.clone())

    for key in actor.out_keys:
        torch.testing.assert_close(out[key], expected[key])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.usefixtures("clean_compiler")
def test_compiled_actor_has_the_gradients_of_eager(make_actor: Actor, make_data: Data) -> None:
    actor = make_actor(return_entropy_bound=True, noise_key="noise")
    data = make_data(5, noise=True)
    compiled = torch.compile(actor, fullgraph=True)  # the default backend: real kernels
    parameters = list(actor.parameters())

    def gradients(module: Callable[[TensorDict], TensorDict]) -> tuple[torch.Tensor, ...]:
        with set_exploration_type(RANDOM):
            out = module(data.clone())
        return torch.autograd.grad(out["action"].sum() + out["entropy_bound"].sum(), parameters)

    for ours, eager in zip(gradients(compiled), gradients(actor), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.usefixtures("clean_compiler")
def test_compiled_actor_draws_new_noise_in_every_call(make_actor: Actor, make_data: Data) -> None:
    actor, data = make_actor(), make_data(5)
    compiled = torch.compile(actor, fullgraph=True, backend="aot_eager")
    with set_exploration_type(RANDOM), torch.no_grad():
        first, second = compiled(data.clone())["action"], compiled(data.clone())["action"]
    assert (first != second).all()


def test_vmap_over_parameters_equals_a_loop(make_actor: Actor, make_data: Data) -> None:
    actors = [make_actor(noise_key="noise") for _ in range(3)]
    for index, actor in enumerate(actors):
        with torch.no_grad():
            actor.process.raw_friction.add_(0.3 * index)
    parameters = torch.stack([TensorDict.from_module(actor).data for actor in actors])
    skeleton, data = make_actor(noise_key="noise"), make_data(5, noise=True)

    def act(weights: TensorDict) -> torch.Tensor:
        with weights.to_module(skeleton):
            return skeleton(data.copy())["action"]

    with set_exploration_type(RANDOM):
        together = torch.vmap(act)(parameters)
        alone = torch.stack([actor(data.copy())["action"] for actor in actors])
    assert together.shape == (3, 5, 2)
    torch.testing.assert_close(together, alone)


def test_vmap_over_parameters_can_draw_its_own_noise(make_actor: Actor, make_data: Data) -> None:
    actor, data = make_actor(), make_data(5)
    parameters = TensorDict.from_module(actor).data
    twice = torch.stack([parameters, parameters])

    def act(weights: TensorDict) -> torch.Tensor:
        with weights.to_module(actor):
            return actor(data.copy())["action"]

    with set_exploration_type(RANDOM):
        first, second = torch.vmap(act, randomness="different")(twice)
    assert (first != second).all()


def test_vmap_over_parameters_of_the_kernels(make_actor: Actor, make_data: Data) -> None:
    actors = [make_actor(return_chain=True) for _ in range(3)]
    rows = chain_rows(actors[0](make_data(5))).reshape(-1)
    parameters = torch.stack([TensorDict.from_module(actor).data for actor in actors])
    skeleton = make_actor()

    def kernel(weights: TensorDict) -> tuple[torch.Tensor, torch.Tensor]:
        with weights.to_module(skeleton):
            return skeleton.denoising_kernel(rows).mean, skeleton.noising_kernel(rows).std

    means, stds = torch.vmap(kernel)(parameters)
    for index, actor in enumerate(actors):
        torch.testing.assert_close(means[index], actor.denoising_kernel(rows).mean)
        torch.testing.assert_close(stds[index], actor.noising_kernel(rows).std)


def test_parameters_from_a_tensordict_act_and_are_taken_out_again(
    make_actor: Actor, make_data: Data
) -> None:
    actor, other = make_actor(), make_actor()
    data = make_data(5)
    with set_exploration_type(DETERMINISTIC):
        own, expected = actor(data.copy())["action"], other(data.copy())["action"]
        with TensorDict.from_module(other).to_module(actor):
            assert torch.equal(actor(data.copy())["action"], expected)
        assert torch.equal(actor(data.copy())["action"], own)
    assert (own != expected).all()


def test_gradients_of_functional_parameters(make_actor: Actor, make_data: Data) -> None:
    actor, data = make_actor(noise_key="noise"), make_data(5, noise=True)
    values = {name: value.detach() for name, value in actor.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        out = torch.func.functional_call(actor, parameters, (data.copy(),))
        return out["action"].square().sum()

    with set_exploration_type(RANDOM):
        gradients = torch.func.grad(loss)(values)
        actor(data.copy())["action"].square().sum().backward()
    for name, parameter in actor.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
