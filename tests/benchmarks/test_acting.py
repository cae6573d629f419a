"""Acting with a denoising chain: overhead over plain torch, and what compilation gains."""

import warnings
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import ActionSquash, DenoisingActor
from diffpolicy.networks import ScoreNetwork
from diffpolicy.sde import DenoisingProcess

STEPS, OBSERVATIONS, OBSERVATION_DIM, ACTION_DIM = 8, 16, 17, 6


def _actor(width: int, return_chain: bool) -> DenoisingActor:
    return DenoisingActor(
        DenoisingProcess(ACTION_DIM, STEPS),
        ScoreNetwork(ACTION_DIM, OBSERVATION_DIM, STEPS, hidden_sizes=(width, width)),
        ActionSquash(-torch.ones(ACTION_DIM), torch.ones(ACTION_DIM)),
        return_chain=return_chain,
    )


def _hand_written_loop(actor: DenoisingActor) -> Callable[[Tensor], Tensor]:
    """Sampling an action with the actor's own torch modules and nothing else."""
    process, network, squash = actor.process, actor.score_network, actor.squash

    def act(observation: Tensor) -> Tensor:
        step_sizes = process.step_sizes()
        std = (2 * step_sizes).sqrt()
        table = network.embedding.table()
        noise = torch.randn(STEPS + 1, len(observation), ACTION_DIM, device=observation.device)
        latent = noise[0] * process.prior_std
        for step in range(STEPS):
            embedding = table[step].expand(len(observation), -1)
            score = network.net(torch.cat((latent, observation, embedding), -1)).clamp(-1e4, 1e4)
            mean = latent + step_sizes[step] * (score - latent / process.prior_std**2)
            latent = mean + std[step] * noise[step + 1]
        return squash(latent)

    return act


@pytest.mark.parametrize("width", [64, 256])
def test_acting_costs_little_more_than_a_hand_written_loop(compare, width: int) -> None:
    actor = _actor(width, return_chain=False)
    loop = _hand_written_loop(actor)
    observation = torch.randn(OBSERVATIONS, OBSERVATION_DIM)
    data = TensorDict({"observation": observation}, [OBSERVATIONS])
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        ratio = compare(lambda: actor(data.copy()), lambda: loop(observation), calls=3)
    assert ratio <= 1.3


def test_compiled_acting_is_twice_as_fast(compare) -> None:
    actor = _actor(64, return_chain=True)
    data = TensorDict({"observation": torch.randn(OBSERVATIONS, OBSERVATION_DIM)}, [OBSERVATIONS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations while it compiles
        compiled = torch.compile(actor)
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            ratio = compare(lambda: compiled(data.copy()), lambda: actor(data.copy()), calls=3)
    assert ratio <= 0.5
