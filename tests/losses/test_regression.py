"""The regression family against its formulas, row by row, and where their answers are known."""

import math
from typing import Any

import pytest
import torch
from loss_builders import ACTION, bandit, gradients, make_off_policy_networks, make_rollout
from rowwise import rowwise_draws
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from diffpolicy.actors import ActionClip, BestOfActor, DenoisingActor, DenoisingMDP
from diffpolicy.networks import ScoreNetwork, StepEmbedding
from diffpolicy.sde import NoiseLevel, RectifiedFlowProcess, VariancePreservingProcess
from objectives import (
    DenoisingRegressionLoss,
    DIMELoss,
    DIPOLoss,
    DPMDLoss,
    FPMDLoss,
    MaxEntDPLoss,
    QVPOLoss,
    SDACLoss,
)
from objectives.regression import (
    BestAction,
    BoltzmannWeight,
    DenoisingLogProb,
    NoiseTarget,
    OwnActions,
    PosteriorTarget,
)
from objectives.regression.targets import _from_inside

GAMMA, TEMPERATURE, PEAK = 0.9, 0.3, 0.4
SMALL: dict[type[DenoisingRegressionLoss], dict[str, Any]] = {
    QVPOLoss: {"num_actions": 3, "uniform": 2, "best_of": 2},
    DIPOLoss: {"ascent_steps": 3},
    DPMDLoss: {"num_actions": 4, "temperature": TEMPERATURE},
    FPMDLoss: {"num_actions": 4, "temperature": TEMPERATURE},
    SDACLoss: {"num_actions": 2, "num_noises": 3, "best_of": 2, "temperature": TEMPERATURE},
    MaxEntDPLoss: {"num_noises": 3, "density_noises": 2, "temperature": TEMPERATURE},
}


class Value(nn.Module):
    """``Q(s, a) = height - slope |a - peak|^2 / 2`` whatever the state."""

    def __init__(self, slope: float = 1.0, peak: float = PEAK) -> None:
        super().__init__()
        self.slope, self.peak = slope, peak
        self.height = nn.Parameter(torch.zeros(()))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        value = -0.5 * self.slope * (action - self.peak).square().sum(-1, keepdim=True)
        return value + self.height + 0 * observation.sum(-1, keepdim=True)


def critic(slope: float = 1.0) -> TensorDictModule:
    return TensorDictModule(Value(slope), ["observation", "action"], ["state_action_value"])


def build(kind: type[DenoisingRegressionLoss], **options: Any) -> DenoisingRegressionLoss:
    process = RectifiedFlowProcess if kind is FPMDLoss else VariancePreservingProcess
    actor, networks = make_off_policy_networks(process=process)
    loss = kind(actor, options.pop("critic", networks), **{**SMALL[kind], **options})
    loss.make_value_estimator(gamma=GAMMA).double()
    SoftUpdate(loss, tau=0.1)
    return loss


def values(loss: DenoisingRegressionLoss, observation: Tensor, action: Tensor) -> Tensor:
    inputs = TensorDict({"observation": observation, "action": action})
    return loss.qvalue_network(inputs)["state_action_value"].amin(-2).squeeze(-1)


def to_unit(loss: DenoisingRegressionLoss, action: Tensor) -> Tensor:
    squash = loss.actor_network.squash
    return (action - (squash.high + squash.low) / 2) * 2 / (squash.high - squash.low)


def noise_mean(
    loss: DenoisingRegressionLoss, observation: Tensor, latent: Tensor, n: Tensor, drawn: Tensor
) -> Tensor:
    """The posterior mean of the noise of one latent, from its truncated draws ``[K, A]``."""
    signal, std = loss.actor_network.process.noise_level(n)
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = normal.cdf((latent - signal) / std), normal.cdf((latent + signal) / std)
    noise = normal.icdf(low + normal.cdf(drawn) * (high - low))
    action = loss.actor_network.squash((latent - std * noise) / signal)
    value = torch.stack([values(loss, observation, each) for each in action])
    return (torch.softmax(value / TEMPERATURE, 0).unsqueeze(-1) * noise).sum(0)


def naive_actor_loss(
    loss: DenoisingRegressionLoss, batch: TensorDictBase, draws: TensorDictBase
) -> Tensor:
    """The mean over rows of weighted squared errors, one action of one row at a time."""
    actor, total = loss.actor_network, []
    for row in range(batch.shape[0]):
        observation, given = batch["observation"][row], draws[row]
        action, weight = fitted(loss, batch, row, given)
        n = given["step"][0, 0]
        signal, std = actor.process.noise_level(n)
        errors = []
        for m in range(action.shape[0]):
            clean, noise = to_unit(loss, action[m]), given["noise"][0, m]
            latent = signal * clean + std * noise
            target = clean - noise if isinstance(loss, FPMDLoss) else noise
            if "posterior_noise" in given:
                drawn = given["posterior_noise"][0, m]
                target = noise_mean(loss, observation, latent, n, drawn).detach()
            output = actor.score_network(latent[None], n[None], observation[None])[0]
            errors.append(weight[m] * (output - target).square().mean())
        total.append(torch.stack(errors).mean())
    return torch.stack(total).mean()


def fitted(
    loss: DenoisingRegressionLoss, batch: TensorDictBase, row: int, given: TensorDictBase
) -> tuple[Tensor, Tensor]:
    """Actions ``[M, A]`` of one row that the network is fitted to, and weights ``[M]``."""
    observation, action = batch["observation"][row], batch["action"][row]
    if isinstance(loss, MaxEntDPLoss):
        return action[None], torch.ones(1, dtype=torch.float64)
    if isinstance(loss, DIPOLoss):
        return climbed(loss, observation, action)[None], torch.ones(1, dtype=torch.float64)
    rows = TensorDict({"observation": observation.expand(loss.proposal.number, -1)})
    with torch.no_grad():
        own = loss.actor_network.sample_action(rows, noise=given["candidate_noise"])
        spread = loss.proposal.spread * given["spread_noise"]
        own = loss.actor_network.squash.from_unit(to_unit(loss, own) + spread)
        value = torch.stack([values(loss, observation, each) for each in own])
    best = own[value.argmax()][None]
    if isinstance(loss, DPMDLoss):
        return own, len(own) * torch.softmax(value / TEMPERATURE, 0)
    if isinstance(loss, SDACLoss):
        return best, torch.ones(1, dtype=torch.float64)
    gain = (value.max() - value.mean()).clamp_min(0)
    uniform = loss.actor_network.squash.from_unit(given["uniform_action"])
    share = torch.tensor([1.0, 0.02, 0.02], dtype=torch.float64)
    return torch.cat((best, uniform)), gain * share


def climbed(loss: DenoisingRegressionLoss, observation: Tensor, action: Tensor) -> Tensor:
    """Three steps of torch's Adam uphill."""
    unit = to_unit(loss, action).detach().requires_grad_()
    optimizer = torch.optim.Adam([unit], 0.03, eps=1e-5)
    for _ in range(3):
        optimizer.zero_grad()
        value = values(loss, observation, loss.actor_network.squash.from_unit(unit))
        (unit.grad,) = torch.autograd.grad(-value, unit)
        optimizer.step()
        with torch.no_grad():
            unit.clamp_(-1, 1)
    return loss.actor_network.squash.from_unit(unit.detach())


@pytest.mark.parametrize("kind", SMALL)
def test_actor_loss_and_gradient_are_those_of_the_formulas(
    kind: type[DenoisingRegressionLoss],
) -> None:
    loss = build(kind)
    batch = make_rollout(loss.actor_network, (5,), dtype=torch.float64)
    draws = rowwise_draws(loss, batch)
    value, _ = loss.actor_loss(batch, draws=draws)
    expected = naive_actor_loss(loss, batch, draws)
    torch.testing.assert_close(value, expected)
    found, wanted = gradients(loss, value), gradients(loss, expected)
    assert found
    for name, gradient in found.items():
        assert "score_network" in name
        torch.testing.assert_close(gradient, wanted[name])


def test_targets_take_the_best_of_several_next_actions_of_the_target_actor() -> None:
    loss = build(QVPOLoss)
    batch = make_rollout(loss.actor_network, (5,), dtype=torch.float64)
    draws = rowwise_draws(loss, batch)
    loss(batch, draws=draws)
    observation, noise = batch["next", "observation"], draws["next_noise"]
    rows = TensorDict({"observation": observation.unsqueeze(1).expand(5, 2, -1)})
    with torch.no_grad():
        action = loss.actor_network.sample_action(rows, noise=noise)
        value = values(loss, rows["observation"], action).amax(1, keepdim=True)
        live = (~batch["next", "terminated"]).double()
        target = batch["next", "reward"] + GAMMA * live * value
        current = loss.qvalue_network(batch.select("observation", "action"))["state_action_value"]
    error = (current.squeeze(-1) - target).abs().amax(-1)
    torch.testing.assert_close(batch["td_error"], error)


def test_maxent_targets_count_the_entropy() -> None:
    torch.manual_seed(0)
    loss, plain = build(MaxEntDPLoss), build(MaxEntDPLoss)
    plain.load_state_dict(loss.state_dict())
    plain.log_prob = None  # the same loss without the entropy
    batch = make_rollout(loss.actor_network, (5,), dtype=torch.float64)
    draws = rowwise_draws(loss, batch)
    with_entropy = loss.qvalue_loss(batch, draws=draws)[1]["target_value"]
    without = plain.qvalue_loss(batch, draws=draws.exclude("density_noise"))[1]["target_value"]
    noise = draws["next_noise"].squeeze(1)
    with torch.no_grad():
        action = loss.actor_network.sample_action(batch["next"], noise=noise)
        given = loss._draws(draws, batch)
        assert loss.log_prob is not None
        log_prob = loss.log_prob(loss, batch["next"], action, given)
    live = (~batch["next", "terminated"]).double()
    torch.testing.assert_close(
        with_entropy, without - (GAMMA * live * TEMPERATURE * log_prob).mean()
    )


def test_equal_values_give_qvpo_no_gradient() -> None:
    loss = build(QVPOLoss, critic=critic(0.0))
    batch = make_rollout(loss.actor_network, (5,), dtype=torch.float64)
    value, described = loss.actor_loss(batch)
    assert float(described["weight"].abs().max()) == 0
    assert all(float(g.abs().max()) == 0 for g in gradients(loss, value).values())


def test_dipo_moves_stored_actions_to_the_best_one_and_not_out_of_the_bounds() -> None:
    loss = build(DIPOLoss, critic=critic(), ascent_steps=20).float()
    batch = make_rollout(loss.actor_network, (64,))
    batch["improved_action"] = batch["action"].clone()
    squash = loss.actor_network.squash
    peak = torch.full((ACTION,), PEAK).clamp(squash.low, squash.high)
    before = (batch["improved_action"] - peak).abs().amax()
    for _ in range(4):
        loss.actor_loss(batch)
        moved = batch["improved_action"]
        assert bool(((moved >= squash.low) & (moved <= squash.high)).all())
    assert float(before) > 1
    assert float((moved - peak).abs().amax()) < 0.05


def test_dipo_leaves_alone_what_is_not_stored() -> None:
    loss = build(DIPOLoss)
    batch = make_rollout(loss.actor_network, (4,), dtype=torch.float64)
    loss(batch)
    assert "improved_action" not in batch


def test_the_log_density_of_a_standard_normal_policy_is_its_own() -> None:
    """``eps_hat = std x`` is the standard normal's; its density is known."""

    class Standard(nn.Module):
        def forward(self, latent: Tensor, step: Tensor, observation: Tensor) -> Tensor:
            return process.noise_level(step).std * latent

    torch.manual_seed(0)
    process = VariancePreservingProcess(2, 200, clip=None)
    bound = torch.ones(2)
    actor = DenoisingActor(process, Standard(), ActionClip(-bound, bound))
    loss = MaxEntDPLoss(actor, critic(), temperature=0.1, density_noises=400)
    action = torch.tensor([[0.0, 0.0], [0.5, -0.9]])
    rows = TensorDict({"observation": torch.zeros(2, 1)}, [2])
    found = DenoisingLogProb(400)(loss, rows, action, loss._draws(None, rows))
    expected = -0.5 * action.square().sum(-1, keepdim=True) - math.log(2 * math.pi)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_noises_of_bounded_latents_lead_inside_of_the_bounds() -> None:
    low, high = torch.tensor([-5.0, 0.0]), torch.tensor([5.0, 0.5])
    clean = low + (high - low) * torch.rand(100, 2)
    level = NoiseLevel(torch.tensor(0.7), torch.tensor(0.6))
    latent = level.signal * clean + level.std * torch.randn(100, 2)
    noise = _from_inside(torch.randn(50, 100, 2), latent, level, low, high)
    found = (latent - level.std * noise) / level.signal
    assert bool(((found >= low - 1e-4) & (found <= high + 1e-4)).all())
    assert float(found[..., 0].max()) > 4
    assert float(noise.std()) > 0.1


def trained_actor(kind: type[DenoisingRegressionLoss], **options: Any) -> DenoisingActor:
    """The policy of a bandit with the parabola, after 120 updates."""
    torch.manual_seed(0)
    process = (RectifiedFlowProcess if kind is FPMDLoss else VariancePreservingProcess)(1, 5)
    score = ScoreNetwork(1, 1, 5, hidden_sizes=(32, 32), embedding=StepEmbedding(5, 16, 16, 8))
    actor = DenoisingActor(process, score, ActionClip(-torch.ones(1), torch.ones(1)))
    loss = kind(actor, critic(), sampled_steps=2, **options)
    targets = SoftUpdate(loss, tau=0.1)
    optimizer = torch.optim.Adam(score.parameters(), 1e-2)
    for _ in range(120):
        value, _ = loss.actor_loss(bandit(64))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        targets.step()
    return actor


def acted(actor: DenoisingActor, rows: int = 4000) -> Tensor:
    with torch.no_grad():
        action: Tensor = actor(bandit(rows).select("observation"))["action"]
    return action


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (QVPOLoss, {"num_actions": 8, "uniform": 2}),
        (DIPOLoss, {"ascent_steps": 8, "ascent_lr": 0.2}),
        (DPMDLoss, {"temperature": 0.02, "num_actions": 8}),
        (FPMDLoss, {"temperature": 0.02, "num_actions": 8}),
        (SDACLoss, {"temperature": 0.02, "num_actions": 4, "num_noises": 16, "best_of": 1}),
        (MaxEntDPLoss, {"temperature": 0.02, "num_noises": 16, "density_noises": 1}),
    ],
)
def test_policies_find_the_best_action_of_a_bandit(
    kind: type[DenoisingRegressionLoss], options: dict[str, Any]
) -> None:
    actor = trained_actor(kind, **options)
    action = acted(actor)
    assert float(action.mean()) == pytest.approx(PEAK, abs=0.15)
    assert float(action.std()) < 0.35  # uniform actions have 0.58
    if kind is FPMDLoss:
        # What one step misses is bounded by the variance of the policy (arXiv 2507.23675).
        actor.denoising_steps = 1
        assert float((acted(actor).mean() - action.mean()).abs()) < 0.1


def test_the_best_of_several_actions_is_worth_more() -> None:
    torch.manual_seed(0)
    actor, _ = make_off_policy_networks(process=VariancePreservingProcess)
    best = BestOfActor(actor, critic(), 16, over_critics=lambda value: value)
    rows = make_rollout(actor, (200,)).select("observation")
    with torch.no_grad():
        single, chosen = actor(rows.clone())["action"], best(rows.clone())["action"]
    distance = [(action - PEAK).square().sum(-1).mean() for action in (single, chosen)]
    assert float(distance[1]) < 0.5 * float(distance[0])


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (QVPOLoss, {"num_actions": 1}, "num_actions must be at least 2"),
        (QVPOLoss, {"uniform": -1}, "uniform and uniform_weight must be at least 0"),
        (QVPOLoss, {"best_of": 0}, "best_of must be at least 1"),
        (DIPOLoss, {"ascent_steps": 0}, "steps must be at least 1"),
        (DPMDLoss, {"kl": 9.0}, "kl must be between 0 and"),
        (SDACLoss, {"temperature": 0.0}, "temperature must be above 0"),
        (SDACLoss, {"num_noises": 0}, "number of noises must be at least 1"),
        (MaxEntDPLoss, {"density_noises": 0}, "number of noises must be at least 1"),
    ],
)
def test_arguments_outside_their_range(
    kind: type[DenoisingRegressionLoss], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build(kind, **options)


def test_fpmd_wants_a_flow() -> None:
    actor, networks = make_off_policy_networks(process=VariancePreservingProcess)
    with pytest.raises(TypeError, match="RectifiedFlowProcess"):
        FPMDLoss(actor, networks, temperature=0.1)


def noisy(action_dim: int, steps: int) -> VariancePreservingProcess:
    return VariancePreservingProcess(action_dim, steps, min_std=0.1)


def test_losses_with_densities_take_a_diffusion_whose_steps_are_all_noisy() -> None:
    actor, networks = make_off_policy_networks(process=noisy)
    loss = DIMELoss(actor, networks, temperature=0.1, delay_qvalue=True)
    SoftUpdate(loss, tau=0.1)
    batch = make_rollout(actor, (6,))
    out = loss(batch)
    assert all(bool(value.isfinite()) for value in out.values())
    assert all(bool(g.isfinite().all()) for g in gradients(loss, out["loss_actor"]).values())
    mdp = DenoisingMDP(actor)
    latents = mdp.chains_for(batch, batch["action"])
    torch.testing.assert_close(actor.squash(latents[..., -1, :]), batch["action"])
    step = mdp.draw_steps(batch.batch_size, mdp.denoising_steps)
    rows = mdp.rows_at(batch.set("latents", latents), step)
    assert bool(mdp.log_ratio(rows).isfinite().all())


@pytest.mark.parametrize("process", [VariancePreservingProcess, RectifiedFlowProcess])
def test_processes_without_densities_are_refused_where_they_are_needed(process: Any) -> None:
    actor, networks = make_off_policy_networks(process=process)
    with pytest.raises(ValueError, match="have no densities"):
        DenoisingMDP(actor)
    loss = DIMELoss(actor, networks, temperature=0.1)
    with pytest.raises(ValueError, match="have no densities"):
        loss(make_rollout(actor, (4,)))


@pytest.mark.parametrize(
    ("weight", "target", "divides"),
    [
        (BoltzmannWeight(), NoiseTarget(), "BoltzmannWeight"),
        (BestAction(), PosteriorTarget(2), "PosteriorTarget"),
    ],
)
def test_parts_that_divide_by_the_temperature_refuse_zero(
    weight: Any, target: Any, divides: str
) -> None:
    actor, networks = make_off_policy_networks(process=VariancePreservingProcess)
    parts = {"proposal": OwnActions(2), "weight": weight, "target": target}
    with pytest.raises(ValueError, match=f"temperature must be above 0: {divides} divides by it"):
        DenoisingRegressionLoss(actor, networks, **parts)
