"""Q-score matching against its formulas, and against densities that are known."""

from typing import Any

import pytest
import torch
from loss_builders import ACTION, bandit, gradients, make_off_policy_networks, make_rollout
from rowwise import rowwise_draws
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from diffpolicy.actors import ActionSquash, DenoisingActor
from diffpolicy.networks import ScoreNetwork, StepEmbedding
from diffpolicy.sde import DenoisingProcess
from objectives import LearnedTemperature, QSMLoss

GAMMA, TEMPERATURE = 0.9, 0.3
PEAK = 0.4


class Parabola(nn.Module):
    """``Q(s, a) = -|a - peak|^2 / 2`` whatever the state, with a parameter that adds nothing."""

    def __init__(self, peak: float = PEAK) -> None:
        super().__init__()
        self.peak = peak
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        value = -0.5 * (action - self.peak).square().sum(-1, keepdim=True)
        return value + self.offset + 0 * observation.sum(-1, keepdim=True)


def parabola(peak: float = PEAK) -> TensorDictModule:
    return TensorDictModule(Parabola(peak), ["observation", "action"], ["state_action_value"])


def build(**options: Any) -> QSMLoss:
    actor, critic = make_off_policy_networks(learn_process=False)
    options = {"temperature": TEMPERATURE, **options}
    loss = QSMLoss(actor, critic, **options).make_value_estimator(gamma=GAMMA).double()
    SoftUpdate(loss, tau=0.1)
    return loss


def transitions(loss: QSMLoss, rows: int = 6) -> TensorDictBase:
    return make_rollout(loss.actor_network, (rows,), dtype=torch.float64)


def noised(loss: QSMLoss, batch: TensorDictBase, draws: TensorDictBase, row: int, k: int) -> Tensor:
    """The latent of one row at its k-th sampled step, from the moments of the noising steps."""
    process, squash = loss.actor_network.process, loss.actor_network.squash
    unit = (batch["action"][row] - (squash.high + squash.low) / 2) * 2 / (squash.high - squash.low)
    mean, variance = torch.atanh(unit), torch.zeros_like(unit)
    for step in range(process.denoising_steps - 1, int(draws["step"][row, k]) - 1, -1):
        eta = process.step_sizes()[step]
        shrunk = 1 - eta / process.prior_std**2
        mean, variance = shrunk * mean, shrunk**2 * variance + 2 * eta
    return mean + variance.sqrt() * draws["noise"][row, k, 0]


def naive_actor_loss(loss: QSMLoss, batch: TensorDictBase, draws: TensorDictBase) -> Tensor:
    """Mean over rows, sampled steps and dimensions of ``(f - y)^2``, row by row."""
    actor, total = loss.actor_network, []
    for row in range(batch.shape[0]):
        for k in range(loss.sampled_steps):
            latent = noised(loss, batch, draws, row, k).requires_grad_()
            observation = batch["observation"][row]
            inputs = TensorDict({"observation": observation, "action": actor.squash(latent)})
            value = loss.qvalue_network(inputs)["state_action_value"].mean()
            density = value / TEMPERATURE + (1 - latent.tanh() ** 2).log().sum()
            (gradient,) = torch.autograd.grad(density, latent)
            target = 2 * (latent / actor.process.prior_std**2 + gradient)
            score = actor.score_network(
                latent[None], draws["step"][row, k], observation[None]
            ).squeeze(0)
            total.append((score - target.detach()).square().mean())
    return torch.stack(total).mean()


@pytest.mark.parametrize("sampled_steps", [1, 3])
def test_actor_loss_and_gradient_are_those_of_the_formulas(sampled_steps: int) -> None:
    loss = build(sampled_steps=sampled_steps)
    batch = transitions(loss)
    draws = rowwise_draws(loss, batch)
    value, described = loss.actor_loss(batch, draws=draws)
    expected = naive_actor_loss(loss, batch, draws)
    torch.testing.assert_close(value, expected)
    wanted = gradients(loss, expected)
    found = gradients(loss, value)
    score = {name for name in found if "score_network" in name}
    assert score == set(found)
    for name in score:
        torch.testing.assert_close(found[name], wanted[name])
    assert described["target_norm"].shape == (6, 1)


def test_targets_have_no_entropy_and_take_the_smaller_critic() -> None:
    loss = build()
    batch = transitions(loss)
    draws = rowwise_draws(loss, batch)
    loss(batch, draws=draws)
    with torch.no_grad():
        path = loss.actor_network.sample_path(batch["next"], noise=draws["next_noise"].squeeze(1))
        coming = TensorDict({"observation": batch["next", "observation"], "action": path.action})
        following = loss.qvalue_network(coming)["state_action_value"].amin(-2)
        live = (~batch["next", "terminated"]).double()
        target = batch["next", "reward"] + GAMMA * live * following
        current = loss.qvalue_network(batch.select("observation", "action"))["state_action_value"]
    error = (current.squeeze(-1) - target).abs()
    torch.testing.assert_close(batch["td_error"], error.amax(-1))
    value, _ = loss.qvalue_loss(batch, draws=draws)
    torch.testing.assert_close(value, error.square().sum(-1).mean())


def test_the_score_that_reverses_the_noising_keeps_its_density() -> None:
    """A chain with the exact score of its stationary density leaves it as it is."""
    torch.manual_seed(0)
    std = 0.7
    process = DenoisingProcess(1, 50, prior_std=std, step_size=0.005, schedule="constant")
    latent = process.sample_prior((20_000,))
    for step in range(50):
        place = torch.full((20_000,), step)
        score = process.output_for_score(latent, -latent / std**2, place)
        kernel = process.denoising_kernel(latent, score, place)
        latent = kernel.sample()
    assert abs(float(latent.detach().std()) - std) < 0.02


def test_the_fixed_point_of_a_parabola_is_its_gradient_at_every_step() -> None:
    actor, _ = make_off_policy_networks(learn_process=False)
    loss = QSMLoss(actor, parabola(0.0), temperature=0.5, delay_qvalue=False)
    rows = make_rollout(loss.actor_network, (32,))
    seen: list[Tensor] = []
    original = loss.actor_network.process.output_for_score

    def watched(latent: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        squash = loss.actor_network.squash
        slope = (squash.high - squash.low) / 2 * (1 - latent.tanh() ** 2)
        seen.append(gradient - (-squash(latent) * slope / 0.5 - 2 * latent.tanh()))
        return original(latent, gradient, step)

    loss.actor_network.process.output_for_score = watched
    loss.actor_loss(rows)
    torch.testing.assert_close(seen[0], torch.zeros(1, 1, 32, ACTION), atol=1e-5, rtol=0)


def bandit_policy(temperature: float) -> Tensor:
    """Actions ``[4000, 1]`` of a policy that was trained on the parabola."""
    torch.manual_seed(0)
    process = DenoisingProcess(1, 8, step_size=0.1, learn_step_size=False, learn_friction=False)
    embedding = StepEmbedding(8, 16, 16, 8)
    score = ScoreNetwork(1, 1, 8, hidden_sizes=(32, 32), embedding=embedding)
    actor = DenoisingActor(process, score, ActionSquash(-torch.ones(1), torch.ones(1)))
    loss = QSMLoss(actor, parabola(), temperature=temperature, delay_qvalue=False, sampled_steps=4)
    optimizer = torch.optim.Adam(score.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 120)
    for _ in range(120):
        value, _ = loss.actor_loss(bandit(64))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        action: Tensor = actor(bandit(4000).select("observation"))["action"]
    return action


def test_bandit_policy_concentrates_as_the_temperature_says() -> None:
    warm, cold = bandit_policy(0.4), bandit_policy(0.05)
    assert abs(float(cold.mean()) - PEAK) < 0.15
    # Towards the middle of the bounds, as exp(Q / T) in them.
    assert 0.1 < float(warm.mean()) < 0.35
    assert float(cold.std()) < 0.75 * float(warm.std())


def test_padding_may_hold_any_action() -> None:
    loss = build()
    batch = transitions(loss)
    batch["action"][0] = 1e6
    with pytest.raises(ValueError, match="action must be within"):
        loss.actor_loss(batch)
    mask = torch.ones(6, dtype=torch.bool)
    mask[0] = False
    value, _ = loss.actor_loss(batch.set(("collector", "mask"), mask))
    assert bool(value.isfinite())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"sampled_steps": 0}, "sampled_steps must be between 1 and"),
        ({"sampled_steps": 99}, "sampled_steps must be between 1 and"),
    ],
)
def test_arguments_outside_their_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_an_actor_without_a_score_is_refused() -> None:
    _, critic = make_off_policy_networks()
    actor = TensorDictModule(nn.Linear(3, 2), ["observation"], ["action"])
    with pytest.raises(TypeError, match="RegressionActor"):
        QSMLoss(actor, critic, temperature=0.1)


def test_a_learned_temperature_follows_the_entropy() -> None:
    loss = build(temperature=LearnedTemperature(0.2, target_entropy=-8.0))
    batch = transitions(loss)
    out = loss(batch, draws=rowwise_draws(loss, batch))
    torch.testing.assert_close(out["loss_alpha"], out["alpha"] * (out["entropy"] + 8.0))
    assert loss.denoising_steps == loss.actor_network.denoising_steps
