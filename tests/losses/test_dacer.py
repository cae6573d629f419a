"""DACERLoss against its formulas, row by row, and its modes that the contract tests leave out."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from loss_builders import gradients
from loss_registry import CASES
from rowwise import rowwise_draws
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from objectives import DACERLoss, DIMELoss

ROWS, GAMMA = 7, 0.99
(GAUSSIAN, SCALAR) = (case for case in CASES if case.loss_class is DACERLoss)


def made(**options: object) -> tuple[DACERLoss, TensorDictBase, TensorDictBase]:
    """The published case, a batch and its random numbers."""
    loss = GAUSSIAN.build(**options)
    batch = GAUSSIAN.rows(loss, (ROWS,)).exclude(loss.tensor_keys.priority_weight)
    return loss, batch, rowwise_draws(loss, batch)


def chain(loss: DACERLoss, observation: Tensor, noise: Tensor, jitter: Tensor) -> Tensor:
    """An executed action [A] of one state, by the formulas of DDPM, in environment units."""
    actor = loss.actor_network
    levels = [float(level) for level in actor.process.levels]
    steps = len(levels) - 1
    latent = noise[0]
    for n, (level, following) in enumerate(pairwise(levels)):
        alpha = level / following
        step = torch.tensor([n])
        predicted = actor.score_network(latent[None], step, observation[None])[0]
        clean = ((latent - (1 - level) ** 0.5 * predicted) / level**0.5).clamp(-1, 1)
        mean = (1 - alpha) * following**0.5 * clean + (1 - following) * alpha**0.5 * latent
        variance = (1 - alpha) * (1 - following) / (1 - level)
        latent = mean / (1 - level)
        if n < steps - 1:
            latent = latent + variance**0.5 * noise[n + 1]
    noisy = (latent.clamp(-1, 1) + 0.1 * loss.temperature() * jitter).clamp(-1, 1)
    low, high = actor.squash.low, actor.squash.high
    return low + (noisy + 1) / 2 * (high - low)


def critics(loss: DACERLoss, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Means [E] and standard deviations [E] of one row."""
    inputs = TensorDict({"observation": observation, "action": action}, [])
    outputs = loss.qvalue_network(inputs)["state_action_value_logits"]
    return outputs[:, 0], torch.log(1 + torch.exp(outputs[:, 1]))


def gaussian_entropy(size: int, std: float) -> float:
    return size / 2 * math.log(2 * math.pi * math.e * std**2)


def test_the_critics_follow_the_published_gradient() -> None:
    loss, batch, draws = made()
    value, described = loss.qvalue_loss(batch, draws=draws)
    found = gradients(loss, value)
    b = float(loss.spread.value)
    ours = torch.zeros(())
    for row, drawn in zip(batch, draws, strict=True):
        coming = row["next"]
        with torch.no_grad():
            action = chain(
                loss, coming["observation"], drawn["next_noise"], drawn["next_action_noise"]
            )
            means, stds = critics(loss, coming["observation"], action)
            k = int(means.argmin())
            draw = min(max(float(drawn["value_noise"]), -3.0), 3.0)
            weight = GAMMA * (1 - float(coming["terminated"]))
            y = float(coming["reward"]) + weight * float(means[k])
            z = float(coming["reward"]) + weight * float(means[k] + stds[k] * draw)
        for q, s in zip(*critics(loss, row["observation"], row["action"]), strict=True):
            mean, std = q.item(), s.item()
            bounded = mean + min(max(z - mean, -3 * b), 3 * b)
            to_mean = -(y - mean) / (std**2 + 0.1)
            to_std = -((mean - bounded) ** 2 - std**2) / (std**3 + 0.1)
            ours = ours + (b**2 + 0.1) * (to_mean * q + to_std * s) / ROWS
    torch.testing.assert_close(value, ours)
    for name, gradient in gradients(loss, ours).items():
        torch.testing.assert_close(found[name], gradient)
    assert set(described) == {"q_value", "target_value", "td_error", "value_std"}


def test_the_policy_climbs_the_smaller_mean_through_the_chain() -> None:
    loss, batch, draws = made()
    value, _ = loss.actor_loss(batch, draws=draws)
    found = gradients(loss, value)
    ours = torch.zeros(())
    for row, drawn in zip(batch, draws, strict=True):
        action = chain(loss, row["observation"], drawn["noise"], drawn["action_noise"])
        ours = ours - critics(loss, row["observation"], action)[0].min() / ROWS
    torch.testing.assert_close(value, ours)
    expected = gradients(loss, ours)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


def test_the_gradient_reaches_every_step_of_the_chain() -> None:
    loss, batch, draws = made()
    noise = draws["noise"].clone().requires_grad_()
    value, _ = loss.actor_loss(batch, draws=draws.clone().set("noise", noise))
    (gradient,) = torch.autograd.grad(value, noise)
    reached = gradient.abs().sum((0, 2)) > 0
    # The last step has no noise.
    assert reached.tolist() == [True] * (len(reached) - 1) + [False]


def test_noise_is_in_the_losses_only_if_it_is_asked_for() -> None:
    loss, batch, draws = made()
    without = draws.clone()
    for name in ("action_noise", "next_action_noise"):
        without[name].zero_()
    quiet = loss(batch, draws=without)
    assert not torch.allclose(loss(batch, draws=draws)["loss_actor"], quiet["loss_actor"])
    loss.noise_in_updates = False
    assert "action_noise" not in loss.draw(batch).keys()  # noqa: SIM118 -- not a dict
    torch.testing.assert_close(loss(batch, draws=draws)["loss_actor"], quiet["loss_actor"])
    torch.testing.assert_close(loss(batch, draws=draws)["loss_qvalue"], quiet["loss_qvalue"])


def test_the_spread_is_a_running_mean_that_training_moves() -> None:
    loss, batch, draws = made()
    rows = [critics(loss, row["observation"], row["action"])[1] for row in batch]
    stds = [float(std.detach().mean()) for std in rows]
    mean = sum(stds) / len(stds)
    loss.qvalue_loss(batch, draws=draws)
    assert float(loss.spread.value) == pytest.approx(0.6)
    loss.train().qvalue_loss(batch, draws=draws)
    assert float(loss.spread.value) == pytest.approx(0.6 + 0.005 * (mean - 0.6))
    loss.spread.value.zero_()
    valid = torch.arange(ROWS) < 3
    padded = batch.clone().set(("collector", "mask"), valid)
    loss.qvalue_loss(padded, draws=draws)
    assert float(loss.spread.value) == pytest.approx(sum(stds[:3]) / 3)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_the_measured_entropy_is_that_of_executed_actions(alpha: float) -> None:
    loss, batch, draws = made()
    with torch.no_grad():
        loss.temperature.log_alpha.fill_(math.log(alpha))
    torch.manual_seed(0)
    # A policy that is a point in the middle of the bounds: what is left is the noise.
    loss.actor_network.sample_action = lambda rows, noise: torch.full((*rows.shape, 2), -0.5)
    entropy = loss.update_entropy(batch)
    assert float(entropy) == pytest.approx(gaussian_entropy(2, 0.1 * alpha), abs=0.1)
    del loss.actor_network.sample_action
    out = loss(batch, draws=draws)
    torch.testing.assert_close(out["entropy"], entropy)
    excess = entropy - loss.temperature.target_entropy
    torch.testing.assert_close(out["loss_alpha"].detach(), math.log(alpha) * excess)


@pytest.mark.parametrize(("entropy", "rises"), [(-3.0, True), (1.0, False)])
def test_alpha_rises_below_the_target_and_falls_above(entropy: float, rises: bool) -> None:
    loss, batch, draws = made()
    loss.temperature.note(torch.tensor(entropy))
    optimizer = torch.optim.Adam(loss.temperature.parameters(), lr=0.03)
    loss(batch, draws=draws)["loss_alpha"].backward()
    optimizer.step()
    assert float(loss.temperature()) == pytest.approx(3 * math.exp(0.03 if rises else -0.03))


def test_before_a_measurement_alpha_stays() -> None:
    loss, batch, _ = made()
    fresh = DACERLoss(loss.actor_network, loss.qvalue_network, delay_qvalue=False)
    out = fresh(batch, draws=rowwise_draws(fresh, batch))
    assert float(out["alpha"]) == pytest.approx(3.0)
    assert fresh.temperature.target_entropy == pytest.approx(-1.8)
    assert not gradients(fresh, out["loss_alpha"])["temperature.log_alpha"].any()


Arguments = dict[str, object]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"noise_scale": -0.1}, "noise_scale=-0.1 must be"),
        (
            {"entropy_actions": 2},
            "entropy_components=3 must be .* at most the number of actions, 2",
        ),
        ({"entropy_components": 0}, "entropy_components=0 must be"),
        ({"spread_rate": 0.0}, "spread_rate=0.0 must be"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: Arguments, problem: str) -> None:
    loss, *_ = made()
    build: Callable[..., DACERLoss] = DACERLoss
    with pytest.raises(ValueError, match=problem):
        build(loss.actor_network, loss.qvalue_network, **arguments)


def test_other_losses_refuse_a_gaussian_head() -> None:
    loss = SCALAR.build()
    gaussian, *_ = made()
    with pytest.raises(ValueError, match="has a GaussianHead, which this loss does not train"):
        DIMELoss(loss.actor_network, gaussian.qvalue_network, temperature=0.1)
