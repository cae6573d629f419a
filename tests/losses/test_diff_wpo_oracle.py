"""Values and gradients of the DiffWPO loss against direct computations in float64."""

from typing import Any

import pytest
import torch
from denoising_oracle import ByHand, critic_distance
from loss_builders import STEPS, connect, gradients, make_denoising_q_networks, make_rollout
from rowwise import rollout_draws, rowwise_draws
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from diffpolicy.networks import HLGauss
from objectives import DiffWPOLoss, LearnedTemperature

GAMMA, LAMBDA, ALPHA, TARGET_ENTROPY = 0.9, 0.7, 0.3, -8.0

pytestmark = pytest.mark.usefixtures("float64")


def build(support: HLGauss | None = None, **options: Any) -> DiffWPOLoss:
    torch.manual_seed(0)
    actor, critic = make_denoising_q_networks(support=support)
    options = {
        "temperature": LearnedTemperature(ALPHA, target_entropy=TARGET_ENTROPY),
        "sampled_steps": STEPS,
        **options,
    }
    return DiffWPOLoss(actor, critic, **options)


def make_rollouts(shape: tuple[int, ...] = (2, 6)) -> TensorDictBase:
    """A rollout of slightly other weights than those of ``build()``."""
    behaviour = build()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in behaviour.actor_network.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape))
    return connect(make_rollout(behaviour.actor_network, shape, dtype=torch.float64))


def estimate(loss: DiffWPOLoss, rollout: TensorDictBase) -> TensorDictBase:
    return loss.value_estimator(rollout, draws=rollout_draws(loss, rollout))


def call(loss: DiffWPOLoss, batch: TensorDictBase) -> TensorDictBase:
    return loss(batch, draws=rowwise_draws(loss, batch))


def make_rows(loss: DiffWPOLoss) -> TensorDictBase:
    return loss.chain_rows(estimate(loss, make_rollouts())).reshape(-1)


def kl_divergence(row: TensorDictBase, mean: Tensor, std: Tensor) -> Tensor:
    old = torch.distributions.Normal(row["kernel_mean"], row["kernel_std"])
    new = torch.distributions.Normal(mean, std)
    return STEPS * torch.distributions.kl_divergence(old, new).sum()


def scaled(value: Tensor, factor: Tensor) -> Tensor:
    """The value; its gradient is multiplied."""
    return value.detach() + factor.detach() * (value - value.detach())


def policy_terms(
    loss: DiffWPOLoss, rows: TensorDictBase, reduction: str = "mean", *, precondition: bool = False
) -> dict[str, Tensor]:
    """Per row: the WPO loss, its square-norm form, KL, and log-ratio at the sample."""
    hand = ByHand(loss, reduction)
    out: dict[str, list[Tensor]] = {"wpo": [], "square": [], "kl": [], "log_ratio": []}
    for row in rows:
        latent, observation, n = row["latent"], row["observation"], int(row["step"])
        mean, variance = hand.kernel(latent, observation, n)
        std = variance.sqrt()
        sample = hand.sample(latent, observation, n).detach().requires_grad_()
        out["log_ratio"].append(hand.log_ratio(latent, sample, observation, n).detach())
        out["kl"].append(kl_divergence(row, mean, std))
        (slope,) = torch.autograd.grad(hand.q(observation, sample, n), sample)
        if precondition:
            mean, std = scaled(mean, std**2), scaled(std, std**2 / 2)
        log_q = torch.distributions.Normal(mean, std).log_prob(sample).sum()
        noising_mean, noising_variance = hand.noising(sample, n)
        log_p = torch.distributions.Normal(noising_mean, noising_variance.sqrt()).log_prob(latent)
        (score,) = torch.autograd.grad(log_q, sample, create_graph=True)
        (back,) = torch.autograd.grad(log_p.sum(), sample, create_graph=True)
        score = score - (scaled(back, noising_variance) if precondition else back)
        out["wpo"].append(((ALPHA * score - slope).detach() * score).sum())
        out["square"].append(ALPHA / 2 * (score - slope / ALPHA).square().sum())
    return {key: torch.stack(values) for key, values in out.items()}


def assert_gradients_equal(loss: DiffWPOLoss, value: Tensor, expected: Tensor, prefix: str) -> None:
    actual, wanted = gradients(loss, value), gradients(loss, expected)
    names = [name for name in wanted if name.startswith(prefix)]
    assert names
    assert set(actual) == set(names)
    for name in names:
        torch.testing.assert_close(actual[name], wanted[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "min"])
def test_gradient_is_that_of_the_squared_distance_of_slopes(reduction: str) -> None:
    """Property 8: ``(T/2) ||gl - gq/T||^2`` with the sample held, gl by autograd."""
    loss = build(kl_bound=1e6, critic_reduction=reduction)
    rows = make_rows(loss)
    value = call(loss, rows)["loss_actor"]
    terms = policy_terms(loss, rows, reduction)
    torch.testing.assert_close(value, terms["wpo"].mean())
    assert_gradients_equal(loss, value, terms["square"].mean(), "actor_network_params.")
    reached = gradients(loss, value)
    prefix = "actor_network_params.process."
    assert {f"{prefix}raw_step_size", f"{prefix}raw_friction"} <= set(reached)


def test_preconditioned_gradient() -> None:
    loss = build(kl_bound=1e6, precondition=True)
    rows = make_rows(loss)
    value = call(loss, rows)["loss_actor"]
    terms = policy_terms(loss, rows, precondition=True)
    torch.testing.assert_close(value, terms["wpo"].mean())
    assert_gradients_equal(loss, value, terms["wpo"].mean(), "actor_network_params.")
    plain = gradients(loss, policy_terms(loss, rows)["wpo"].mean())
    name = "actor_network_params.process.raw_step_size"
    assert not torch.allclose(gradients(loss, value)[name], plain[name])


def test_trust_region_switches_row_by_row() -> None:
    multiplier, rows = 0.7, make_rows(build())
    bound = float(policy_terms(build(), rows)["kl"].detach().median())
    loss = build(kl_bound=bound, initial_multiplier=multiplier)
    out, terms = call(loss, rows), policy_terms(loss, rows)
    inside = terms["kl"] < bound
    assert 0 < int(inside.sum()) < len(inside)
    expected = torch.where(inside, terms["wpo"], multiplier * terms["kl"]).mean()
    torch.testing.assert_close(out["loss_actor"], expected)
    assert_gradients_equal(loss, out["loss_actor"], expected, "actor_network_params.")
    torch.testing.assert_close(out["kl"], terms["kl"].mean().detach())
    torch.testing.assert_close(out["multiplier"], torch.tensor(multiplier))
    torch.testing.assert_close(out["trust_region_fraction"], inside.double().mean())


@pytest.mark.parametrize("bound", [1e-4, 10.0])
def test_multiplier_rises_iff_the_kl_is_above_its_bound(bound: float) -> None:
    loss = build(kl_bound=bound, initial_multiplier=0.4)
    rows = make_rows(loss)
    out = call(loss, rows)
    kl = policy_terms(loss, rows)["kl"].mean().detach()
    torch.testing.assert_close(out["loss_multiplier"], -0.4 * (kl - bound))
    reached = gradients(loss, out["loss_multiplier"])
    assert set(reached) == {"multiplier.log_multiplier"}
    (slope,) = reached.values()
    torch.testing.assert_close(slope, -0.4 * (kl - bound))
    assert (float(slope) < 0) == (bound < 1)


@pytest.mark.parametrize("offset", [-1.0, 1.0])
def test_temperature_falls_iff_the_entropy_is_above_its_target(offset: float) -> None:
    rows = make_rows(build())
    entropy = -STEPS * policy_terms(build(), rows)["log_ratio"].mean()
    loss = build(temperature=LearnedTemperature(ALPHA, target_entropy=float(entropy) - offset))
    out = call(loss, rows)
    torch.testing.assert_close(out["entropy"], entropy)
    torch.testing.assert_close(out["loss_alpha"].detach(), torch.tensor(ALPHA * offset))
    (slope,) = gradients(loss, out["loss_alpha"]).values()
    torch.testing.assert_close(slope, torch.tensor(ALPHA * offset))


@pytest.mark.parametrize("categorical", [False, True])
def test_critic_loss_of_rows(categorical: bool) -> None:
    support = HLGauss(-1.5, 1.0, 9) if categorical else None
    loss = build(support, critic_coeff=0.6)
    rows = make_rows(loss)
    hand = ByHand(loss)
    distances = []
    for row in rows:
        head = hand.critics(row["observation"], row["next_latent"], int(row["step"]))
        distances.append(critic_distance(head, row["value_target"].squeeze(), support))
    expected = 0.6 * torch.stack(distances).mean()
    value = call(loss, rows)["loss_qvalue"]
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "qvalue_network_params.")


# -- replay -----------------------------------------------------------------------------------


def build_delayed(bound: float) -> DiffWPOLoss:
    """A loss whose target networks lag behind."""
    loss = build(delay_actor=True, delay_qvalue=True, kl_bound=bound, critic_reduction="min")
    updater = SoftUpdate(loss, tau=0.4)
    with torch.no_grad():
        for parameter in (*loss.actor_network.parameters(), *loss.qvalue_network.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape))
    updater.step()
    return loss.make_value_estimator(gamma=GAMMA)


def delayed_policy_terms(loss: DiffWPOLoss, batch: TensorDictBase) -> dict[str, Tensor]:
    """With the delayed actor's kernels instead of the behaviour's."""
    rows = loss.chain_rows(batch).reshape(-1)
    now = ByHand(loss, "min")
    with loss.target_actor_network_params.to_module(loss.actor_network), torch.no_grad():
        for row in rows:
            mean, variance = now.kernel(row["latent"], row["observation"], int(row["step"]))
            row["kernel_mean"].copy_(mean)
            row["kernel_std"].copy_(variance.sqrt())
    return policy_terms(loss, rows, "min")


def test_replay_losses() -> None:
    batch = make_rollout(build().actor_network, (8,), dtype=torch.float64)
    bound = float(delayed_policy_terms(build_delayed(1.0), batch)["kl"].detach().median())
    loss = build_delayed(bound)
    out, terms = call(loss, batch), delayed_policy_terms(loss, batch)
    inside = terms["kl"] < bound
    assert 0 < int(inside.sum()) < len(inside)
    expected = torch.where(inside, terms["wpo"], 0.3 * terms["kl"]).mean()
    torch.testing.assert_close(out["loss_actor"], expected)
    assert_gradients_equal(loss, out["loss_actor"], expected, "actor_network_params.")
    now, before = ByHand(loss, "min"), ByHand(loss, "min", target=True)
    distances = []
    for row in batch:
        for n in range(STEPS):
            target = before.target_value(row, n, gamma=GAMMA)
            head = now.critics(row["observation"], row["latents"][n + 1], n)
            distances.append(critic_distance(head, target, None))
    critic = torch.stack(distances).mean()
    torch.testing.assert_close(out["loss_qvalue"], critic)
    assert_gradients_equal(loss, out["loss_qvalue"], critic, "qvalue_network_params.")


# -- lambda-returns ---------------------------------------------------------------------------


def lambda_returns(loss: DiffWPOLoss, rollout: TensorDictBase, lmbda: float, mode: str) -> Tensor:
    """Targets ``[T, N]`` of one environment, from the last row backwards."""
    hand = ByHand(loss, "mean")
    time = len(rollout)
    target = torch.zeros(time, STEPS)

    def discount(factor: float, step: int) -> float:
        return factor if mode == "denoising_step" or step == STEPS - 1 else 1.0

    for t in reversed(range(time)):
        following = rollout[t]["next"]
        for n in reversed(range(STEPS)):
            reward = float(following["reward"]) if n == STEPS - 1 else 0.0
            last = n == STEPS - 1
            if last and bool(following["terminated"]):
                target[t, n] = reward
                continue
            if last and (bool(following["done"]) or t == time - 1):
                after = hand.soft_value(hand.prior, following["observation"], 0, 1, 1.0)
            else:
                index = (t + 1, 0) if last else (t, n + 1)
                later = rollout[index[0]]
                latent = later["latents"][index[1] + 1]
                value = hand.q(later["observation"], latent, index[1])
                share = discount(lmbda, n)
                after = (1 - share) * value + share * target[index]
                after = after - ALPHA * later["log_ratio"][index[1]].squeeze()
            target[t, n] = reward + discount(GAMMA, n) * after.detach()
    return target


@pytest.mark.parametrize("mode", ["env", "denoising_step"])
@pytest.mark.parametrize("lmbda", [0.0, LAMBDA, 1.0])
def test_lambda_returns(lmbda: float, mode: str) -> None:
    loss = build(discount_mode=mode)
    loss.make_value_estimator(gamma=GAMMA, lmbda=lmbda)
    rollout = make_rollouts((3, 6))
    ends = rollout["next", "done"] & ~rollout["next", "terminated"]
    assert bool(ends[:, :-1].any())
    assert bool(rollout["next", "terminated"][:, :-1].any())
    assert not bool(rollout["next", "done"][:, -1].all())
    rollout["next", "done"] |= rollout["next", "terminated"]
    target = estimate(loss, rollout)["value_target"]
    assert target.shape == (3, 6, STEPS, 1)
    assert not target.requires_grad
    expected = torch.stack([lambda_returns(loss, env, lmbda, mode) for env in rollout])
    torch.testing.assert_close(target.squeeze(-1), expected)
