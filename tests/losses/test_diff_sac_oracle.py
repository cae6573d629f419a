"""Values and gradients of the DiffSAC loss against direct computations in float64."""

from itertools import combinations
from typing import Any

import pytest
import torch
from denoising_oracle import ByHand, critic_distance
from loss_builders import STEPS, gradients, make_denoising_q_networks, make_rollout
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from diffpolicy.networks import HLGauss
from objectives import DiffSACLoss, LearnedTemperature

GAMMA, ALPHA, TARGET_ENTROPY = 0.9, 0.3, -8.0

pytestmark = pytest.mark.usefixtures("float64", "frozen_noise")


def build(
    support: HLGauss | None = None, discount_mode: str = "env", **options: Any
) -> DiffSACLoss:
    """A loss that takes every step of every chain, so that nothing but noise is drawn."""
    torch.manual_seed(0)
    actor, critic = make_denoising_q_networks(support=support)
    options = {
        "temperature": LearnedTemperature(ALPHA, target_entropy=TARGET_ENTROPY),
        "sampled_steps": STEPS,
        "delay_critic": False,
        "discount_mode": discount_mode,
        **options,
    }
    return DiffSACLoss(actor, critic, **options).make_value_estimator(gamma=GAMMA)


def transitions(loss: DiffSACLoss, rows: int = 8) -> TensorDictBase:
    batch = make_rollout(loss.actor_network, (rows,), dtype=torch.float64)
    batch.names = None
    assert bool(batch["next", "terminated"].any())
    assert not bool(batch["next", "terminated"].all())
    return batch


def targets(hand: ByHand, batch: TensorDictBase, **options: Any) -> Tensor:
    """``[*B, N]``."""
    rows = [
        torch.stack([hand.target_value(row, n, gamma=GAMMA, **options) for n in range(STEPS)])
        for row in batch
    ]
    return torch.stack(rows)


def critic_terms(loss: DiffSACLoss, batch: TensorDictBase, target: Tensor) -> Tensor:
    """``[*B, N]``."""
    hand = ByHand(loss)
    rows = [
        torch.stack(
            [
                critic_distance(
                    hand.critics(row["observation"], row["latents"][n + 1], n),
                    target[i, n],
                    loss.value_support,
                )
                for n in range(STEPS)
            ]
        )
        for i, row in enumerate(batch)
    ]
    return torch.stack(rows)


def policy_terms(loss: DiffSACLoss, batch: TensorDictBase, reduction: str) -> tuple[Tensor, Tensor]:
    """``T LR - Q`` at a fresh pathwise sample, and ``LR``, both ``[*B, N]``."""
    hand = ByHand(loss, reduction)
    terms, ratios = [], []
    for row in batch:
        for n in range(STEPS):
            latent, observation = row["latents"][n], row["observation"]
            following = hand.sample(latent, observation, n)
            ratio = hand.log_ratio(latent, following, observation, n)
            terms.append(ALPHA * ratio - hand.q(observation, following, n))
            ratios.append(ratio)
    return torch.stack(terms).reshape(-1, STEPS), torch.stack(ratios).reshape(-1, STEPS)


def assert_gradients_equal(loss: DiffSACLoss, value: Tensor, expected: Tensor, prefix: str) -> None:
    actual, wanted = gradients(loss, value), gradients(loss, expected)
    names = [name for name in wanted if name.startswith(prefix)]
    assert set(actual) == set(names)
    for name in names:
        torch.testing.assert_close(actual[name], wanted[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", ["env", "denoising_step"])
@pytest.mark.parametrize("budget", [1, 2, STEPS])
@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_scalar_critic_loss(reduction: str, budget: int, mode: str) -> None:
    loss = build(critic_reduction=reduction, target_steps=budget, discount_mode=mode)
    batch = transitions(loss)
    value, diagnostics = loss.critic_loss(batch)
    inside = 1.0 if mode == "env" else GAMMA
    target = targets(ByHand(loss, reduction), batch, budget=budget, inside=inside)
    expected = critic_terms(loss, batch, target).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "critic_network_params.")
    torch.testing.assert_close(diagnostics["target_value"], target.mean())


def test_target_networks() -> None:
    loss = build(delay_critic=True)
    updater = SoftUpdate(loss, tau=0.3)
    with torch.no_grad():
        for parameter in loss.critic_network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    updater.step()
    batch = transitions(loss)
    value, _ = loss.critic_loss(batch)
    delayed = targets(ByHand(loss, target=True), batch)
    assert not torch.allclose(delayed, targets(ByHand(loss), batch), rtol=1e-2)
    expected = critic_terms(loss, batch, delayed).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "critic_network_params.")
    policy, _ = policy_terms(loss, batch, "min")  # the actor follows the critic, not its target
    torch.testing.assert_close(loss.actor_loss(batch)[0], policy.mean())


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_hl_gauss_critic_loss(reduction: str) -> None:
    loss = build(HLGauss(-1.5, 1.0, 9), critic_reduction=reduction)
    batch = transitions(loss)
    value, diagnostics = loss.critic_loss(batch)
    target = targets(ByHand(loss, reduction), batch)
    outside = (target < -1.5) | (target > 1.0)
    assert bool(outside.any())
    expected = critic_terms(loss, batch, target).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "critic_network_params.")
    torch.testing.assert_close(diagnostics["value_clip_fraction"], outside.double().mean())


@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize("categorical", [False, True])
def test_actor_and_temperature_losses(categorical: bool, reduction: str) -> None:
    support = HLGauss(-1.5, 1.0, 9) if categorical else None
    loss = build(support, critic_reduction=reduction)
    batch = transitions(loss)
    value, diagnostics = loss.actor_loss(batch)
    terms, ratios = policy_terms(loss, batch, reduction)
    torch.testing.assert_close(value, terms.mean())
    assert_gradients_equal(loss, value, terms.mean(), "actor_network_params.")
    reached = gradients(loss, value)
    prefix = "actor_network_params.process."
    assert {f"{prefix}raw_step_size", f"{prefix}raw_friction"} <= set(reached)
    entropy = diagnostics["entropy_bound"]
    torch.testing.assert_close(entropy, -STEPS * ratios.mean(-1, keepdim=True).detach())
    alpha = loss.alpha_loss(batch, entropy)
    expected = ALPHA * (entropy.mean() - TARGET_ENTROPY)
    torch.testing.assert_close(alpha, expected)
    (slope,) = torch.autograd.grad(alpha, loss.temperature.log_alpha)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("number", [1, 2, STEPS])
def test_sampled_steps_average_different_steps(number: int) -> None:
    """A row's losses are means over some steps, every subset about equally often."""
    copies = 600
    loss = build(sampled_steps=number, reduction="none")
    row = transitions(loss)[:1]
    target = targets(ByHand(loss), row)
    terms = [critic_terms(loss, row, target), policy_terms(loss, row, "min")[0]]
    batch = row.expand(copies).clone()
    values = [loss.critic_loss(batch)[0].detach(), loss.actor_loss(batch)[0].detach()]
    subsets = list(combinations(range(STEPS), number))
    for value, steps in zip(values, terms, strict=True):
        expected = torch.stack([steps[0, list(subset)].mean() for subset in subsets]).detach()
        distance = (value[:, None] - expected).abs()
        assert float(distance.min(-1).values.max()) < 1e-9
        shares = torch.bincount(distance.argmin(-1), minlength=len(subsets)) / copies
        assert bool(((shares - 1 / len(subsets)).abs() < 0.08).all())


def test_critic_and_actor_of_one_call_share_their_steps() -> None:
    """Otherwise the temperature and the policy would see other steps than the critic."""
    loss = build(sampled_steps=1, reduction="none")
    row = transitions(loss)[:1]
    critic = critic_terms(loss, row, targets(ByHand(loss), row))[0]
    actor = policy_terms(loss, row, "min")[0][0]
    out = loss(row.expand(60).clone())
    first = (out["loss_critic"][:, None] - critic).abs().argmin(-1)
    second = (out["loss_actor"][:, None] - actor).abs().argmin(-1)
    assert len(set(first.tolist())) == STEPS
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1"])
def test_other_distances(kind: str) -> None:
    loss = build(loss_critic_type=kind)
    batch = transitions(loss)
    target = targets(ByHand(loss), batch)
    hand, total = ByHand(loss), []
    for i, row in enumerate(batch):
        for n in range(STEPS):
            head = hand.critics(row["observation"], row["latents"][n + 1], n)
            error = (head - target[i, n]).abs()
            quadratic = torch.where(error < 1, 0.5 * error**2, error - 0.5)
            total.append((error if kind == "l1" else quadratic).sum())
    torch.testing.assert_close(loss.critic_loss(batch)[0], torch.stack(total).mean())


def test_priorities_are_the_largest_errors_averaged_over_the_steps() -> None:
    loss = build()
    batch = transitions(loss)
    target, hand = targets(ByHand(loss), batch), ByHand(loss)
    _, diagnostics = loss.critic_loss(batch)
    for i, row in enumerate(batch):
        errors = [
            (hand.critics(row["observation"], row["latents"][n + 1], n) - target[i, n]).abs().max()
            for n in range(STEPS)
        ]
        torch.testing.assert_close(row["td_error"], torch.stack(errors).mean().detach())
    torch.testing.assert_close(diagnostics["td_error"], batch["td_error"].mean())


def test_returns_of_several_steps_are_discounted_by_their_length() -> None:
    loss = build()
    batch = transitions(loss)
    length = torch.arange(8).reshape(8, 1) % 3 + 1
    expected = torch.stack(
        [
            torch.stack([ByHand(loss).target_value(row, n, gamma=GAMMA**k) for n in range(STEPS)])
            for row, k in zip(batch, length.flatten().tolist(), strict=True)
        ]
    )
    batch["steps_to_next_obs"] = length
    value, _ = loss.critic_loss(batch)
    torch.testing.assert_close(value, critic_terms(loss, batch, expected).mean())
