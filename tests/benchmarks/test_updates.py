"""A DiffPPO update against TorchRL's Gaussian PPO update with networks of the same size."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss, LossModule

from collectors import make_env
from diffpolicy.actors import NetworkConfig, build_gaussian_ppo_networks, build_ppo_networks
from objectives import DiffPPOLoss

ROWS, STEPS, ENVS = 4096, 4, 4


def _rollout(time: int) -> TensorDict:
    shape = (ENVS, time)
    following = {
        "observation": torch.randn(*shape, 17),
        "reward": torch.randn(*shape, 1),
        "done": torch.zeros(*shape, 1, dtype=torch.bool),
        "terminated": torch.zeros(*shape, 1, dtype=torch.bool),
    }
    return TensorDict({"observation": torch.randn(*shape, 17), "next": following}, shape)


def _update(loss: LossModule, rows: TensorDictBase) -> Callable[[], None]:
    optimizer = torch.optim.Adam(loss.parameters())

    def update() -> None:
        terms = loss(rows)
        optimizer.zero_grad()
        sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()

    return update


@pytest.mark.parametrize("width", [64, 256])
def test_an_update_costs_little_more_than_gaussian_ppo(compare, width: int) -> None:
    env = make_env("HalfCheetah-v5")
    config = NetworkConfig(actor_hidden=(width, width), critic_hidden=(width, width))
    diffusion = build_ppo_networks(env, denoising_steps=STEPS, network=config)
    gaussian = build_gaussian_ppo_networks(env, network=config)
    env.close()
    loss = DiffPPOLoss(diffusion.actor, diffusion.critic, temperature=0.01)
    baseline = ClipPPOLoss(gaussian.actor, gaussian.critic, entropy_bonus=False)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        chains = diffusion.actor(_rollout(ROWS // STEPS // ENVS))
        loss.value_estimator(chains)
        actions = gaussian.actor(_rollout(ROWS // ENVS))
        baseline.value_estimator(actions)
    rows = loss.chain_rows(chains).reshape(-1)
    baseline_rows = actions.reshape(-1)
    assert len(rows) == len(baseline_rows) == ROWS
    ratio = compare(_update(loss, rows), _update(baseline, baseline_rows), calls=1, turns=25)
    assert ratio <= 1.5
