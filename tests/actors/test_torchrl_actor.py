"""TorchRL's diffusion actor taken over: step by step what its own sampler computes."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import DiffusionActor
from torchrl.objectives import DiffusionBCLoss

from diffpolicy.actors import from_torchrl
from diffpolicy.errors import ArgumentError
from objectives import BehaviorCloningLoss

ACTION_DIM, OBSERVATION_DIM, STEPS, ROWS = 2, 3, 12, 5
FAR = Bounded(-1e3, 1e3, (ACTION_DIM,))


def trained(dtype: torch.dtype = torch.float64, **options: Any) -> DiffusionActor:
    """TorchRL's, with a network that says something about all of its inputs."""
    torch.manual_seed(3)
    options = {"num_steps": STEPS, "beta_end": 0.3, **options}
    actor = DiffusionActor(ACTION_DIM, OBSERVATION_DIM, **options).to(dtype)
    with torch.no_grad():
        actor.module.score_network[-1].weight.mul_(10)
    return actor


def drawn(seed: int, dtype: torch.dtype) -> Tensor:
    """The noise of TorchRL's sampler after a seed, as ours reads it, ``[rows, steps + 1, A]``."""
    torch.manual_seed(seed)
    return torch.stack([torch.randn(ROWS, ACTION_DIM, dtype=dtype) for _ in range(STEPS + 1)], -2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exploration", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_the_same_noise_gives_the_same_latents(
    exploration: ExplorationType, dtype: torch.dtype
) -> None:
    theirs = trained(dtype)
    ours = from_torchrl(theirs, FAR, return_chain="latents", noise_key="noise")
    data = TensorDict({"observation": torch.randn(ROWS, OBSERVATION_DIM, dtype=dtype)}, [ROWS])
    noise = drawn(7, dtype)
    if exploration == ExplorationType.DETERMINISTIC:
        noise = torch.zeros_like(noise)
    seen: list[Tensor] = []
    network = theirs.module.score_network
    hook = network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.manual_seed(7)
    with set_exploration_type(exploration), torch.no_grad():
        expected = theirs(data.clone())["action"]
        hook.remove()
        found = ours(data.clone().set("noise", noise))
    latents = torch.stack([value[..., :ACTION_DIM] for value in seen], -2)
    # TorchRL's schedule is in single precision whatever the network is in.
    torch.testing.assert_close(found["latents"][:, :-1], latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["action"], expected, rtol=1e-4, atol=1e-5)
    assert bool((expected.abs() > 1).any())
    assert found["action"].dtype == dtype


def test_actions_are_clipped_to_the_bounds_as_by_safe_actors() -> None:
    bounds = Bounded(torch.tensor([-0.3, -5.0]).double(), torch.tensor([0.3, 5.0]).double())
    theirs = trained(spec=bounds, safe=True)
    ours = from_torchrl(theirs)
    observation = torch.randn(ROWS, OBSERVATION_DIM, dtype=torch.float64)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = theirs(TensorDict({"observation": observation}, [ROWS]))["action"]
        found = ours(observation=observation)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert bool((found[:, 0].abs() > 0.299).any())
        program = torch.export.export(ours, args=(), kwargs={"observation": observation}).module()
        torch.testing.assert_close(program(observation=observation), found)


def test_cloning_goes_on_where_torchrl_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss for the same steps and noise, beyond the latents that tanh would reach."""
    theirs = trained()
    ours = from_torchrl(theirs, Bounded(-5.0, 5.0, (ACTION_DIM,)))
    loss = BehaviorCloningLoss(ours)
    data = TensorDict(
        {
            "observation": torch.randn(ROWS, OBSERVATION_DIM).double(),
            "action": 5 * (2 * torch.rand(ROWS, ACTION_DIM).double() - 1),
        },
        [ROWS],
    )
    draws = loss.draw(data)
    time = STEPS - 1 - draws["step"].reshape(ROWS)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: time)
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: draws["noise"].squeeze(1))
    expected = DiffusionBCLoss(theirs)(data)["loss_diffusion_bc"]
    found = loss(data, draws=draws)["loss_actor"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert all(p.grad is None for p in theirs.parameters())


@pytest.mark.parametrize(
    ("change", "spec", "words"),
    [
        ({}, None, "action_spec=None is needed"),
        ({}, Unbounded(ACTION_DIM), "has no bounds"),
        ({}, Bounded(-1.0, 1.0, (3,)), "has 3 actions, and the actor 2"),
        ({"dtype": torch.bfloat16}, FAR, "bfloat16.*single or double precision"),
        ({"lazy": True}, FAR, "call the actor once"),
        ({"betas": torch.rand(STEPS)}, FAR, "even steps"),
    ],
)
def test_what_is_not_taken_over_is_named(change: dict[str, Any], spec: Any, words: str) -> None:
    theirs = DiffusionActor(ACTION_DIM) if "lazy" in change else trained()
    if "dtype" in change:
        theirs = theirs.to(change["dtype"])
    if "betas" in change:
        theirs.module.betas = change["betas"]
    with pytest.raises(ArgumentError, match=words):
        from_torchrl(theirs, spec)
    with pytest.raises(ArgumentError, match="is no DiffusionActor"):
        from_torchrl(torch.nn.Linear(1, 1), FAR)  # type: ignore[arg-type]
