"""torch.export of actors: exported programs compute what the modules compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torch.export import Dim, export
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import (
    ActionClip,
    ActionSquash,
    ActorKeys,
    DenoisingActor,
    DenoisingStepActor,
    GaussianChainActor,
    RandomChains,
)
from diffpolicy.networks import IntervalEmbedding, ScoreNetwork
from diffpolicy.sde import MeanFlowProcess

RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
Actor = Callable[..., DenoisingActor]
SEVERAL = ["position", ("sensors", "speed")]


def outputs(call: Callable[..., Any], **inputs: Tensor) -> tuple[Tensor, ...]:
    """What a module or a program returns for keywords, from a fixed seed."""
    torch.manual_seed(7)
    out = call(**inputs)
    return out if isinstance(out, tuple) else (out,)


def check_keyword_export(
    module: TensorDictModuleBase, inputs: dict[str, Tensor], exploration: ExplorationType
) -> None:
    """Export by keywords, as TorchRL's recipe does, and compare on other values."""
    with set_exploration_type(exploration), torch.no_grad():
        program = export(module, args=(), kwargs=inputs).module()
        others = {
            name: value if value.dtype == torch.int64 else torch.randn_like(value)
            for name, value in inputs.items()
        }
        expected = outputs(module, **others)
        found = outputs(program, **others)
    assert len(found) == len(module.out_keys)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-6, rtol=1e-6)


def gaussian(**options: Any) -> GaussianChainActor:
    squash = ActionSquash(torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.3]))
    return GaussianChainActor(nn.Linear(3, 2), squash, **options).double()


@pytest.mark.parametrize("return_chain", [False, True])
@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
def test_gaussian_actor(exploration: ExplorationType, return_chain: bool) -> None:
    inputs = {"observation": torch.randn(4, 3).double()}
    check_keyword_export(gaussian(return_chain=return_chain), inputs, exploration)
    noisy = gaussian(return_chain=return_chain, noise_key="noise")
    check_keyword_export(noisy, {**inputs, "noise": torch.randn(4, 2).double()}, exploration)


@pytest.mark.parametrize(
    ("in_keys", "noise_key"),
    [(["observation"], None), (["observation"], ("n", "z")), (SEVERAL, ("n", "z"))],
)
@pytest.mark.parametrize(
    ("exploration", "deterministic_step"),
    [
        (RANDOM, "mean"),
        (DETERMINISTIC, "mean"),
        (DETERMINISTIC, "flow"),
        (DETERMINISTIC, "published"),
    ],
)
def test_denoising_actor(
    make_actor: Actor,
    exploration: ExplorationType,
    deterministic_step: str,
    noise_key: tuple[str, str] | None,
    in_keys: list,
) -> None:
    actor = make_actor(in_keys=in_keys, noise_key=noise_key, deterministic_step=deterministic_step)
    if in_keys == SEVERAL:
        inputs = {"position": torch.randn(4, 2), "sensors_speed": torch.randn(4, 1)}
    else:
        inputs = {"observation": torch.randn(4, 3)}
    if noise_key is not None:
        inputs["n_z"] = torch.randn(4, 5, 2)
    inputs = {name: value.double() for name, value in inputs.items()}
    check_keyword_export(actor, inputs, exploration)


@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
def test_chain_nested_keys_and_other_numbers_of_steps(
    make_actor: Actor, exploration: ExplorationType
) -> None:
    keys = ActorKeys(action=("agent", "action"), latents=("chain", "latents"))
    actor = make_actor(keys=keys, return_chain=True, return_entropy_bound=True)
    actor.denoising_steps = 6
    check_keyword_export(actor, {"observation": torch.randn(4, 3).double()}, exploration)


@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
def test_mean_flow_in_another_number_of_steps(exploration: ExplorationType) -> None:
    """Also without ``condition``, which is the same in fewer operations."""
    network = ScoreNetwork(
        2, 3, 4, hidden_sizes=(8,), embedding=IntervalEmbedding(4, 4, 3), init_std=0.3
    )
    squash = ActionClip(torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.3]))
    actor = DenoisingActor(MeanFlowProcess(2, 4), network, squash).double()
    inputs = {"observation": torch.randn(5, 3).double()}
    for steps in (1, 3):
        actor.denoising_steps = steps
        check_keyword_export(actor, inputs, exploration)
        noise = torch.randn(5, steps + 1, 2).double()
        latent = noise[:, 0]
        for step in range(steps):
            times = torch.tensor([step, step + 1]).double().div(steps).expand(5, 2)
            latent = latent + network(latent, times, inputs["observation"]) / steps
        torch.testing.assert_close(actor.sample_latent(inputs["observation"], noise), latent)


@pytest.mark.parametrize("noise_key", [None, "noise"])
@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
def test_step_actor_and_random_chains(
    make_actor: Actor, exploration: ExplorationType, noise_key: str | None
) -> None:
    actor, observation = make_actor(), torch.randn(4, 3).double()
    inputs = {
        "observation": observation,
        "latent": torch.randn(4, 2).double(),
        "step": torch.randint(4, (4, 1)),
    }
    noise = {} if noise_key is None else {"noise": torch.randn(4, 2).double()}
    check_keyword_export(
        DenoisingStepActor(actor, noise_key=noise_key), {**inputs, **noise}, exploration
    )
    noise = {} if noise_key is None else {"noise": torch.randn(4, 5, 2).double()}
    check_keyword_export(
        RandomChains(actor, noise_key=noise_key), {"observation": observation, **noise}, exploration
    )


@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
def test_inside_a_sequence(make_actor: Actor, exploration: ExplorationType) -> None:
    encoder = TensorDictModule(nn.Linear(6, 3), in_keys=["pixels"], out_keys=["observation"])
    sequence = TensorDictSequential(encoder.double(), make_actor())
    check_keyword_export(sequence, {"pixels": torch.randn(4, 6).double()}, exploration)


@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
@pytest.mark.parametrize(
    ("wrap", "strict"),
    [(lambda actor: actor, False), (lambda actor: actor, True), (TensorDictSequential, False)],
)
def test_dynamic_batch_of_one_observation(
    make_actor: Actor, exploration: ExplorationType, strict: bool, wrap: Callable
) -> None:
    actor, observation = make_actor(), torch.randn(4, 3).double()
    actor.denoising_steps = 2
    module = wrap(actor)
    with set_exploration_type(exploration), torch.no_grad():
        program = export(
            module, args=(observation,), dynamic_shapes=({0: Dim("batch")},), strict=strict
        ).module()
        for rows in (2, 9):
            other = torch.randn(rows, 3).double()
            torch.manual_seed(3)
            expected = module(other)
            torch.manual_seed(3)
            torch.testing.assert_close(program(other), expected, atol=1e-6, rtol=1e-6)


def test_dynamic_batch_of_several_inputs(make_actor: Actor) -> None:
    actor = make_actor(in_keys=SEVERAL, noise_key="noise")
    actor.denoising_steps = 2

    def data(rows: int) -> TensorDict:
        return TensorDict(
            {
                "position": torch.randn(rows, 2),
                "sensors": {"speed": torch.randn(rows, 1)},
                "noise": torch.randn(rows, 3, 2),
            }
        ).double()

    batch = {0: Dim("batch")}
    with set_exploration_type(RANDOM), torch.no_grad():
        program = export(
            actor, args=(data(4),), dynamic_shapes=([batch, [batch], batch],), strict=True
        ).module()
        other = data(9)
        found, expected = program(other.clone()), actor(other.clone())
    for key in actor.out_keys:
        torch.testing.assert_close(found[key], expected[key], atol=1e-6, rtol=1e-6)
