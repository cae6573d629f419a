"""The losses on single denoising steps at their doors: masks, chains, entropies, precision."""

import math
from typing import Any

import pytest
import torch
from loss_builders import (
    make_denoising_q_networks,
    make_networks,
    make_off_policy_networks,
    make_rollout,
)
from rowwise import rowwise_draws
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Normal
from torchrl.objectives import LossModule

from diffpolicy.networks import CategoricalSupport, HLGauss
from objectives import DiffPPOLoss, DiffSACLoss, DiffWPOLoss, DIMELoss, LearnedTemperature

ROWS = 12


def build(kind: type[LossModule], **options: Any) -> LossModule:
    torch.manual_seed(0)
    actor, critic = make_denoising_q_networks()
    return kind(actor, critic, **{"temperature": 0.3, "delay_qvalue": False, **options})


def transitions(loss: LossModule) -> TensorDictBase:
    batch = make_rollout(loss.actor_network, (ROWS,))
    batch.names = None
    return batch


def backward(loss: LossModule, batch: TensorDictBase) -> None:
    sum(value for key, value in loss(batch).items() if key.startswith("loss_")).backward()


@pytest.mark.parametrize("kind", [DiffSACLoss, DiffWPOLoss])
def test_padding_in_replay_reaches_no_gradient(kind: type[LossModule]) -> None:
    loss = build(kind)
    batch = transitions(loss)
    mask = torch.arange(ROWS) % 3 == 0
    # Padding of zeros has kernels without width.
    std = torch.where(mask[:, None, None], batch["kernel_std"], 0.0)
    batch.set("kernel_std", std)
    backward(loss, batch.set(("collector", "mask"), mask))
    for name, parameter in loss.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_latents_of_rows_get_no_gradient() -> None:
    loss = build(DiffWPOLoss)
    rollout = make_rollout(loss.actor_network, (3, 4))
    rows = loss.chain_rows(loss.value_estimator(rollout)).reshape(-1).clone()
    latents = [rows[key].requires_grad_() for key in ("latent", "next_latent")]
    backward(loss, rows)
    assert all(latent.grad is None for latent in latents)
    assert all(rows[key].requires_grad for key in ("latent", "next_latent"))


def test_critic_may_read_only_what_rows_hold() -> None:
    actor, critic = make_denoising_q_networks()
    asymmetric = TensorDictModule(
        nn.Identity(), in_keys=[*critic.in_keys, "privileged"], out_keys=["state_action_value"]
    )
    with pytest.raises(ValueError, match=r"qvalue_network reads \['privileged'\], but rows hold"):
        DiffSACLoss(actor, asymmetric, temperature=0.1)


def test_target_actor_with_observation_statistics_is_refused() -> None:
    actor, *_ = make_networks(normalize=True)
    _, critic = make_denoising_q_networks()
    with pytest.raises(ValueError, match=r"statistics of RunningNorm.*normalize_observations=Fal"):
        DiffWPOLoss(actor, critic, temperature=0.1, delay_actor=True)


def test_centring_follows_the_target_entropy() -> None:
    loss = build(
        DiffSACLoss, temperature=LearnedTemperature(0.5, target_entropy=-2.0), center_entropy=True
    )
    batch = transitions(loss)

    def target() -> float:
        torch.manual_seed(3)
        return float(loss(batch)["target_value"])

    before = target()
    loss.temperature.target_entropy = -50.0
    assert target() > before + 1.0


@pytest.mark.parametrize("kind", [DiffSACLoss, DiffWPOLoss])
def test_chains_that_lead_elsewhere_raise_or_are_counted(kind: type[LossModule]) -> None:
    batch = transitions(build(kind))
    batch["action"][:3] += 0.1
    with pytest.raises(ValueError, match=r"3 of 12 chains.*chains_for.*check_chains='off'"):
        build(kind)(batch)
    padded = batch.clone().set(("collector", "mask"), torch.arange(ROWS) > 2)
    build(kind)(padded)  # padding may hold anything
    out = build(kind, check_chains="report")(batch)
    assert float(out["misled_chain_fraction"]) == 3 / 12
    each = build(kind, check_chains="report", reduction="none")(batch)
    assert each["misled_chain_fraction"].tolist() == [1.0] * 3 + [0.0] * 9
    plain = build(kind, check_chains="off")
    assert "action" not in plain.in_keys
    assert "misled_chain_fraction" not in plain(batch.exclude("action")).keys()  # noqa: SIM118


@pytest.mark.parametrize("kind", [DiffPPOLoss, DiffWPOLoss])
def test_rollouts_are_looked_at_when_they_become_rows(kind: type[LossModule]) -> None:
    def make(check: str) -> LossModule:
        if kind is DiffWPOLoss:
            return build(kind, check_chains=check)
        torch.manual_seed(0)
        return DiffPPOLoss(*make_networks()[:2], check_chains=check)

    rollout = make_rollout(make("off").actor_network, (3, 4))
    rollout["action"][0] += 0.1
    strict, counting = make("raise"), make("report")
    with pytest.raises(ValueError, match="4 of 12 chains"):
        strict.chain_rows(strict.value_estimator(rollout.clone()))
    rows = counting.chain_rows(counting.value_estimator(rollout)).reshape(-1)
    assert float(counting(rows)["misled_chain_fraction"]) == pytest.approx(4 / 12)
    assert "misled_chain_fraction" not in rollout.keys()  # noqa: SIM118


def test_the_check_needs_an_actor_that_squashes() -> None:
    actor, critic = make_denoising_q_networks()
    del actor.squash
    loss = DiffSACLoss(actor, critic, temperature=0.1, delay_qvalue=False)
    assert loss.check_chains == "off"
    with pytest.raises(TypeError, match="check_chains='raise' needs an actor with a member squash"):
        DiffSACLoss(actor, critic, temperature=0.1, check_chains="raise")
    with pytest.raises(ValueError, match="check_chains must be one of 'raise', 'report', 'off'"):
        DiffSACLoss(actor, critic, temperature=0.1, check_chains=True)


@pytest.mark.parametrize("squashed", [False, True])
def test_the_entropy_bound_is_that_of_the_action_by_hand(squashed: bool) -> None:
    """Minus log-ratios and prior, plus log|d tanh|, whatever ``entropy`` is."""
    steps = 3
    loss = build(DiffSACLoss, sampled_steps=steps, squashed_entropy=squashed, reduction="none")
    batch = transitions(loss)
    draws = rowwise_draws(loss, batch)
    out = loss(batch, draws=draws)
    for row in range(ROWS):
        entropy = bound = 0.0
        for n in range(steps):
            index = int((draws["step"][row, :, 0] == n).nonzero())
            state = TensorDict({"observation": batch["observation"][row]}, [])
            state["latent"], state["step"] = batch["latents"][row, n], torch.tensor([n])
            mean, std = loss.actor_network.denoising_kernel(state)
            state["next_latent"] = mean + std * draws["proposal"][row, index]
            noising = Normal(*loss.actor_network.noising_kernel(state))
            ratio = Normal(mean, std).log_prob(state["next_latent"]).sum()
            ratio = ratio - noising.log_prob(state["latent"]).sum()
            log_det = (1 - state["next_latent"].tanh() ** 2).log().sum() if n == steps - 1 else 0.0
            prior = Normal(0.0, loss.actor_network.process.prior_std)
            term = prior.log_prob(state["latent"]).sum() if n == 0 else 0.0
            entropy = entropy - ratio + (log_det if squashed else 0.0)
            bound = bound - ratio + log_det - term
        torch.testing.assert_close(out["entropy"][row], entropy.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out["entropy_bound"][row], bound.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [DIMELoss, DiffSACLoss, DiffWPOLoss])
def test_the_automatic_target_is_that_of_sac_for_the_bound(kind: type[LossModule]) -> None:
    temperature = LearnedTemperature(1.0)
    assert math.isnan(temperature.target_entropy)
    make = make_off_policy_networks if kind is DIMELoss else make_denoising_q_networks
    actor, critic = make()
    kind(actor, critic, temperature=temperature, delay_qvalue=False)
    assert temperature.target_entropy + actor.prior_entropy == pytest.approx(-2.0)
    kind(actor, critic, temperature=LearnedTemperature(1.0, -3.0), delay_qvalue=False)


@pytest.mark.parametrize("kind", [DIMELoss, DiffSACLoss, DiffWPOLoss])
@pytest.mark.parametrize("categorical", [False, True])
def test_autocast_changes_precision_only(kind: type[LossModule], categorical: bool) -> None:
    torch.manual_seed(0)
    if kind is DIMELoss:
        support = CategoricalSupport(-4, 4, 9) if categorical else None
        actor, critic = make_off_policy_networks(support=support)
    else:
        support = HLGauss(-4, 4, 9) if categorical else None
        actor, critic = make_denoising_q_networks(support=support)
    loss = kind(actor, critic, temperature=0.3, delay_qvalue=False)
    batch = transitions(loss)
    draws = rowwise_draws(loss, batch)
    expected = loss(batch.clone(), draws=draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = loss(batch, draws=draws)
    for key in ("loss_qvalue", "loss_actor", "target_value"):
        assert out[key].dtype == torch.float32
        torch.testing.assert_close(out[key], expected[key], rtol=0.1, atol=0.1)
    (out["loss_qvalue"] + out["loss_actor"]).backward()
    assert all(bool(p.grad.isfinite().all()) for p in loss.parameters() if p.grad is not None)
