"""Values and gradients of the DiffSAC loss against direct computations in float64."""

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from denoising_oracle import ByHand, critic_distance
from loss_builders import (
    STEPS,
    gradients,
    make_denoising_q_networks,
    make_rollout,
)
from rowwise import noise_of, path_noise, rowwise_draws, start_of
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from diffpolicy.networks import HLGauss
from objectives import DiffSACLoss, LearnedTemperature

GAMMA, ALPHA, TARGET_ENTROPY = 0.9, 0.3, -8.0

pytestmark = pytest.mark.usefixtures("float64")


class SquashedByHand(ByHand):
    """With the entropy of the squashed action."""

    def log_ratio(
        self, latent: Tensor, next_latent: Tensor, observation: Tensor, step: int
    ) -> Tensor:
        plain = super().log_ratio(latent, next_latent, observation, step)
        if step < self.steps - 1:
            return plain
        return plain - (1 - next_latent.tanh().square()).log().sum()


def by_hand(loss: DiffSACLoss, reduction: str = "min") -> ByHand:
    return (SquashedByHand if loss.replayed.squashed_entropy else ByHand)(loss, reduction)


def build(
    support: HLGauss | None = None, discount_mode: str = "env", **options: Any
) -> DiffSACLoss:
    """A loss that takes every step of every chain, so that nothing but noise is drawn."""
    torch.manual_seed(0)
    actor, critic = make_denoising_q_networks(support=support)
    options = {
        "temperature": LearnedTemperature(ALPHA, target_entropy=TARGET_ENTROPY),
        "sampled_steps": STEPS,
        "delay_qvalue": False,
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


def policy_terms(
    loss: DiffSACLoss, batch: TensorDictBase, reduction: str, inside: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``T LR`` minus the value after a fresh pathwise sample, and ``LR``, both ``[*B, N]``."""
    hand = by_hand(loss, reduction)
    held = by_hand(copy.deepcopy(loss), reduction)
    budget = loss.actor_steps - 1
    terms, ratios = [], []
    for row in batch:
        for n in range(STEPS):
            latent, observation = row["latents"][n], row["observation"]
            following = hand.sample(latent, observation, n)
            ratio = hand.log_ratio(latent, following, observation, n)
            if budget == 0 or n == STEPS - 1:
                value = hand.q(observation, following, n)
            else:
                value = inside * held.soft_value(following, observation, n + 1, budget, inside)
            terms.append(ALPHA * ratio - value)
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
@pytest.mark.parametrize(
    ("reduction", "squashed"), [("min", False), ("mean", False), ("mean", True)]
)
def test_scalar_critic_loss(reduction: str, squashed: bool, budget: int, mode: str) -> None:
    loss = build(
        critic_reduction=reduction,
        target_steps=budget,
        discount_mode=mode,
        squashed_entropy=squashed,
    )
    batch = transitions(loss)
    value, diagnostics = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))
    inside = 1.0 if mode == "env" else GAMMA
    target = targets(by_hand(loss, reduction), batch, budget=budget, inside=inside)
    expected = critic_terms(loss, batch, target).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "qvalue_network_params.")
    torch.testing.assert_close(diagnostics["target_value"], target.mean())


def test_target_networks() -> None:
    loss = build(delay_qvalue=True)
    updater = SoftUpdate(loss, tau=0.3)
    with torch.no_grad():
        for parameter in loss.qvalue_network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    updater.step()
    batch = transitions(loss)
    value, _ = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))
    delayed = targets(ByHand(loss, target=True), batch)
    assert not torch.allclose(delayed, targets(ByHand(loss), batch), rtol=1e-2)
    expected = critic_terms(loss, batch, delayed).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "qvalue_network_params.")
    policy, _ = policy_terms(loss, batch, "min")  # the actor follows the critic, not its target
    torch.testing.assert_close(
        loss.actor_loss(batch, draws=rowwise_draws(loss, batch))[0], policy.mean()
    )


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_hl_gauss_critic_loss(reduction: str) -> None:
    loss = build(HLGauss(-1.5, 1.0, 9), critic_reduction=reduction)
    batch = transitions(loss)
    value, diagnostics = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))
    target = targets(ByHand(loss, reduction), batch)
    outside = (target < -1.5) | (target > 1.0)
    assert bool(outside.any())
    expected = critic_terms(loss, batch, target).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "qvalue_network_params.")
    torch.testing.assert_close(diagnostics["value_clip_fraction"], outside.double().mean())


@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize(
    ("categorical", "squashed"), [(False, False), (True, False), (False, True)]
)
def test_actor_and_temperature_losses(categorical: bool, squashed: bool, reduction: str) -> None:
    support = HLGauss(-1.5, 1.0, 9) if categorical else None
    loss = build(support, critic_reduction=reduction, squashed_entropy=squashed)
    batch = transitions(loss)
    value, diagnostics = loss.actor_loss(batch, draws=rowwise_draws(loss, batch))
    terms, ratios = policy_terms(loss, batch, reduction)
    torch.testing.assert_close(value, terms.mean())
    assert_gradients_equal(loss, value, terms.mean(), "actor_network_params.")
    reached = gradients(loss, value)
    prefix = "actor_network_params.process."
    assert {f"{prefix}raw_step_size", f"{prefix}raw_friction"} <= set(reached)
    entropy = diagnostics["entropy"]
    torch.testing.assert_close(entropy, -STEPS * ratios.mean(-1, keepdim=True).detach())
    alpha = loss.alpha_loss(batch, entropy)
    expected = ALPHA * (entropy.mean() - TARGET_ENTROPY)
    torch.testing.assert_close(alpha, expected)
    (slope,) = torch.autograd.grad(alpha, loss.temperature.log_alpha)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("mode", ["env", "denoising_step"])
@pytest.mark.parametrize("number", [2, STEPS])
def test_actor_loss_through_the_steps_after_its_own(number: int, mode: str) -> None:
    """Their parameters are held: the gradient is that of the one step, through all others."""
    loss = build(actor_steps=number, discount_mode=mode, squashed_entropy=True)
    batch = transitions(loss)
    value, diagnostics = loss.actor_loss(batch, draws=rowwise_draws(loss, batch))
    inside = 1.0 if mode == "env" else GAMMA
    terms, ratios = policy_terms(loss, batch, "min", inside)
    torch.testing.assert_close(value, terms.mean())
    assert_gradients_equal(loss, value, terms.mean(), "actor_network_params.")
    torch.testing.assert_close(
        diagnostics["entropy"], -STEPS * ratios.mean(-1, keepdim=True).detach()
    )


def drawn(loss: DiffSACLoss, batch: TensorDictBase) -> TensorDictBase:
    """The loss's own choice of steps, with the noise that the oracle has for them."""
    step = loss.draw(batch)["step"]
    observation, following = (x["observation"].unsqueeze(-2) for x in (batch, batch["next"]))
    last = step == STEPS - 1
    seen = torch.where(last, following, observation)
    after = torch.where(last, 0, step + 1)
    size = batch["action"].shape[-1]
    draws = {
        "step": step,
        "proposal": noise_of(observation, step, size),
        "prior": start_of(seen, size),
        "target": noise_of(seen, after, size).unsqueeze(-2),
    }
    return TensorDict(draws, batch.batch_size)


@pytest.mark.parametrize("number", [1, 2, STEPS])
def test_sampled_steps_average_different_steps(number: int) -> None:
    """A row's losses are means over some steps, every subset about equally often."""
    copies = 600
    loss = build(sampled_steps=number, reduction="none")
    row = transitions(loss)[:1]
    target = targets(ByHand(loss), row)
    terms = [critic_terms(loss, row, target), policy_terms(loss, row, "min")[0]]
    batch = row.expand(copies).clone()
    values = [loss.qvalue_loss(batch, draws=drawn(loss, batch))[0].detach()]
    values.append(loss.actor_loss(batch, draws=drawn(loss, batch))[0].detach())
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
    batch = row.expand(60).clone()
    out = loss(batch, draws=drawn(loss, batch))
    first = (out["loss_qvalue"][:, None] - critic).abs().argmin(-1)
    second = (out["loss_actor"][:, None] - actor).abs().argmin(-1)
    assert len(set(first.tolist())) == STEPS
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1"])
def test_other_distances(kind: str) -> None:
    loss = build(loss_function=kind)
    batch = transitions(loss)
    target = targets(ByHand(loss), batch)
    hand, total = ByHand(loss), []
    for i, row in enumerate(batch):
        for n in range(STEPS):
            head = hand.critics(row["observation"], row["latents"][n + 1], n)
            error = (head - target[i, n]).abs()
            quadratic = torch.where(error < 1, 0.5 * error**2, error - 0.5)
            total.append((error if kind == "l1" else quadratic).sum())
    torch.testing.assert_close(
        loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))[0], torch.stack(total).mean()
    )


def test_priorities_are_the_largest_errors_averaged_over_the_steps() -> None:
    loss = build()
    batch = transitions(loss)
    target, hand = targets(ByHand(loss), batch), ByHand(loss)
    _, diagnostics = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))
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
    value, _ = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))
    torch.testing.assert_close(value, critic_terms(loss, batch, expected).mean())


# -- fresh chains -----------------------------------------------------------------------------


def with_fresh_chains(loss: DiffSACLoss, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """The policy's chains for the observations, and the same ending where the stored ones end."""
    noise = path_noise(batch["observation"], STEPS, batch["action"].shape[-1])
    chains = loss.actor_network.sample_chain(batch["observation"], noise).latents.detach()
    return chains, torch.cat((chains[:, :-1], batch["latents"][:, -1:]), 1)


def test_fresh_chains_replace_all_but_the_last_step() -> None:
    loss = build(fresh_chains=True, squashed_entropy=True, check_chains="off")
    batch = transitions(loss)
    batch["latents"] = batch["latents"] + 0.5 * torch.randn_like(batch["latents"])
    chains, mixed = with_fresh_chains(loss, batch)
    assert bool(((chains - batch["latents"]).abs() > 1e-3).all())
    value, _ = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))
    seen = batch.clone().set("latents", mixed)
    expected = critic_terms(loss, seen, targets(by_hand(loss), seen)).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "qvalue_network_params.")
    value, diagnostics = loss.actor_loss(batch, draws=rowwise_draws(loss, batch))
    seen = batch.clone().set("latents", chains)
    terms, ratios = policy_terms(loss, seen, "min")
    torch.testing.assert_close(value, terms.mean())
    assert_gradients_equal(loss, value, terms.mean(), "actor_network_params.")
    torch.testing.assert_close(
        diagnostics["entropy"], -STEPS * ratios.mean(-1, keepdim=True).detach()
    )


def test_of_a_stored_chain_nothing_but_the_last_latent_is_looked_at() -> None:
    loss = build(fresh_chains=True, check_chains="off")
    batch = transitions(loss)
    expected = loss(batch, draws=rowwise_draws(loss, batch))
    batch["latents"][:, :-1] = float("nan")
    out = loss(batch, draws=rowwise_draws(loss, batch))
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value)
    for key in ("loss_actor", "loss_qvalue"):
        wanted = gradients(loss, expected[key])
        for name, gradient in gradients(loss, out[key]).items():
            torch.testing.assert_close(gradient, wanted[name])
    batch["latents"][:, -1] += 1.0
    out = loss(batch, draws=rowwise_draws(loss, batch))
    torch.testing.assert_close(out["loss_actor"], expected["loss_actor"])
    assert not torch.allclose(out["loss_qvalue"], expected["loss_qvalue"], rtol=1e-2)


# -- centred entropies ------------------------------------------------------------------------


def steps_counted(batch: TensorDictBase, budget: int, inside: float) -> Tensor:
    """Entropies in the targets, each weighted with its discount, by hand ``[*B, N]``."""
    counts = torch.zeros(len(batch), STEPS)
    for i, row in enumerate(batch):
        for n in range(STEPS - 1):
            simulated = min(budget, STEPS - 1 - n)
            counts[i, n] = sum(inside ** (k + 1) for k in range(simulated))
        if not bool(row["next", "terminated"]):
            counts[i, STEPS - 1] = GAMMA * sum(inside**k for k in range(budget))
    return counts


@pytest.mark.parametrize("mode", ["env", "denoising_step"])
@pytest.mark.parametrize("budget", [1, 2, STEPS])
def test_centred_entropies_move_targets_by_their_number(budget: int, mode: str) -> None:
    plain, centred = (
        build(target_steps=budget, discount_mode=mode, center_entropy=center)
        for center in (False, True)
    )
    batch = transitions(plain)
    counts = steps_counted(batch, budget, 1.0 if mode == "env" else GAMMA)
    each = ALPHA * TARGET_ENTROPY / STEPS
    for index in range(len(batch)):
        row = batch[index : index + 1].clone()
        before, after = (
            loss.qvalue_loss(row, draws=rowwise_draws(loss, row))[1]["target_value"]
            for loss in (plain, centred)
        )
        torch.testing.assert_close(after - before, -each * counts[index].mean())
    target = targets(ByHand(plain), batch, budget=budget, inside=1.0 if mode == "env" else GAMMA)
    expected = critic_terms(plain, batch, target - each * counts).mean()
    torch.testing.assert_close(
        centred.qvalue_loss(batch, draws=rowwise_draws(centred, batch))[0], expected
    )


def test_centred_entropies_move_nothing_but_targets() -> None:
    plain, centred = (build(center_entropy=center, target_steps=2) for center in (False, True))
    batch = transitions(plain)
    draws = rowwise_draws(plain, batch)
    before, after = (loss(batch, draws=draws) for loss in (plain, centred))
    assert not torch.allclose(after["loss_qvalue"], before["loss_qvalue"], rtol=1e-2)
    for key in ("loss_actor", "loss_alpha", "entropy", "alpha", "q_value"):
        torch.testing.assert_close(after[key], before[key])
    wanted = gradients(plain, before["loss_actor"])
    for name, gradient in gradients(centred, after["loss_actor"]).items():
        torch.testing.assert_close(gradient, wanted[name])
