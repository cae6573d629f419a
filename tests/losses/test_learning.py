"""DiffPPOLoss learns one-step bandits in seconds, through chain rollouts alone."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from diffpolicy.actors import ActionSquash, DenoisingActor
from diffpolicy.networks import DenoisingValueNetwork, ScoreNetwork, StepEmbedding
from diffpolicy.sde import DenoisingProcess
from objectives import DiffPPOLoss, LearnedTemperature, Temperature

Reward = Callable[[Tensor], Tensor]


def make_loss(steps: int, temperature: float | Temperature) -> DiffPPOLoss:
    process = DenoisingProcess(1, steps, step_size=0.1, friction=0.5, schedule="constant")
    hidden, embedding = (32, 32), (steps, 8, 16, 8)
    score = ScoreNetwork(1, 1, steps, hidden_sizes=hidden, embedding=StepEmbedding(*embedding))
    bound = torch.ones(1)
    actor = DenoisingActor(process, score, ActionSquash(-bound, bound), return_chain=True)
    value = DenoisingValueNetwork(
        1, 1, steps, hidden_sizes=hidden, embedding=StepEmbedding(*embedding)
    )
    critic = TensorDictModule(value, ["observation", "latent", "step"], ["state_value"])
    return DiffPPOLoss(
        actor, critic, temperature=temperature, advantage_normalization="standardize"
    )


def play(loss: DiffPPOLoss, reward: Reward, bandits: int) -> TensorDictBase:
    observation = torch.zeros(bandits, 1, 1)
    rollout = TensorDict({"observation": observation}, [bandits, 1], names=[None, "time"])
    with torch.no_grad():
        loss.actor_network(rollout)
    ends = torch.ones(bandits, 1, 1, dtype=torch.bool)
    following = {"observation": observation, "done": ends, "terminated": ends.clone()}
    following["reward"] = reward(rollout["action"])
    rollout["next"] = TensorDict(following, [bandits, 1])
    return rollout


def train(loss: DiffPPOLoss, reward: Reward, iterations: int, bandits: int = 256) -> Tensor:
    """Actions of the trained policy ``[2000]``."""
    loss.make_value_estimator(gamma=1.0, lmbda=0.95)
    optimizer = torch.optim.Adam(loss.parameters(), 3e-3)
    for _ in range(iterations):
        rollout = loss.value_estimator(play(loss, reward, bandits))
        rows = loss.chain_rows(rollout).reshape(-1)
        for _ in range(4):
            for index in torch.randperm(len(rows)).chunk(4):
                out = loss(rows[index])
                optimizer.zero_grad()
                sum(value for key, value in out.items() if key.startswith("loss_")).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    return play(loss, reward, 2000)["action"].flatten()


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 0.01])
def test_learns_a_continuous_bandit(temperature: float) -> None:
    def reward(action: Tensor) -> Tensor:
        return -((action - 0.5) ** 2)

    loss = make_loss(4, temperature)
    before = float(reward(play(loss, reward, 2000)["action"]).mean())
    actions = train(loss, reward, 25)
    after = float(reward(actions).mean())
    assert before < -0.5
    assert after > -0.1
    assert float(actions.mean()) == pytest.approx(0.5, abs=0.15)


def two_modes(action: Tensor) -> Tensor:
    return -(((action.abs() - 0.5) / 0.25) ** 2)


def mode_masses(actions: Tensor) -> tuple[float, float]:
    left, right = (((actions - mode).abs() < 0.25).double().mean() for mode in (-0.5, 0.5))
    return float(left), float(right)


@pytest.mark.slow
def test_temperature_keeps_both_modes() -> None:
    """Two equal modes: with a temperature both stay, without one of them wins."""
    loss = make_loss(5, 0.2)
    before = float(two_modes(play(loss, two_modes, 2000)["action"]).mean())
    actions = train(loss, two_modes, 80)
    assert min(mode_masses(actions)) > 0.15
    assert float(two_modes(actions).mean()) > before + 0.3
    greedy = train(make_loss(5, 0.0), two_modes, 60)
    assert min(mode_masses(greedy)) < 0.05
    assert max(mode_masses(greedy)) > 0.75


@pytest.mark.parametrize("target", [-8.0, 8.0])
def test_learned_temperature_moves_towards_its_target_entropy(target: float) -> None:
    temperature = LearnedTemperature(0.3, target_entropy=target)
    loss = make_loss(4, temperature)
    train(loss, two_modes, 8)
    entropy = -float(play(loss, two_modes, 2000)["log_ratio"].sum(-2).mean())
    assert -8 < entropy < 8
    assert (float(temperature()) < 0.25) == (entropy > target)
    assert (float(temperature()) > 0.35) == (entropy < target)
