"""Behaviour of the DiffWPO loss: Gaussian closed forms, trust region, lambda-returns, options."""

import math
from typing import Any

import pytest
import torch
from loss_builders import (
    ACTION,
    STEPS,
    TableChainActor,
    connect,
    gradients,
    make_denoising_q_networks,
    make_rollout,
    to_double,
)
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torchrl.objectives.value.functional import td_lambda_return_estimate

from diffpolicy.networks import RunningNorm
from diffpolicy.sde import Gaussian
from objectives import DenoisingTDLambda, DiffWPOLoss, LearnedTemperature


def build(**options: Any) -> DiffWPOLoss:
    torch.manual_seed(0)
    actor, critic = make_denoising_q_networks()
    return DiffWPOLoss(actor, critic, **{"temperature": 0.3, **options}).double()


def make_rollouts(loss: DiffWPOLoss, shape: tuple[int, ...] = (3, 8)) -> TensorDictBase:
    return connect(to_double(make_rollout(loss.actor_network, shape)))


def make_rows(loss: DiffWPOLoss) -> TensorDictBase:
    return loss.chain_rows(loss.value_estimator(make_rollouts(loss))).reshape(-1)


class GaussianActor(TableChainActor):
    """One step to ``N(mean, std^2)`` whatever the state, both parameters; a noising kernel that
    does not depend on it."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__(nn.Identity(), action_dim=mean.shape[-1])
        self.mean, self.std = nn.Parameter(mean), nn.Parameter(std)

    def denoising_kernel(self, rows: TensorDictBase) -> Gaussian:
        shape = (*rows.batch_size, self.action_dim)
        return Gaussian(self.mean.expand(shape), self.std.expand(shape))


class Paraboloid(nn.Module):
    """``Q(a) = c a - d a^2 / 2``, summed over the action."""

    def __init__(self, slope: Tensor, curvature: Tensor) -> None:
        super().__init__()
        self.slope, self.curvature = nn.Parameter(slope), nn.Parameter(curvature)

    def forward(self, observation: Tensor, next_latent: Tensor, step: Tensor) -> Tensor:
        value = self.slope * next_latent - self.curvature * next_latent.square() / 2
        return value.sum(-1, keepdim=True).unsqueeze(-2)


MEAN, STD = torch.tensor([0.3, -0.4]), torch.tensor([0.5, 1.3])
SLOPE, CURVATURE = torch.tensor([0.8, -0.6]), torch.tensor([0.9, 0.2])


class GaussianWPO:
    """The loss of single samples of a Gaussian policy, gradients per sample.

    The policy has moved by less than the trust region allows.
    """

    def __init__(self, *, temperature: float, linear: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        curvature = 0 * CURVATURE if linear else CURVATURE
        critic = TensorDictModule(
            Paraboloid(SLOPE.double(), curvature.double()),
            ["observation", "next_latent", "step"],
            ["state_action_value"],
        )
        actor = GaussianActor(MEAN.double(), STD.double())
        self.loss = DiffWPOLoss(
            actor, critic, temperature=temperature, kl_bound=10.0, reduction="none", **options
        )
        rows = TensorDict({"observation": torch.zeros(20, 3).double()}, [20])
        rows["latent"] = torch.randn(20, ACTION).double()
        rows["next_latent"] = torch.randn(20, ACTION).double()
        rows["step"] = torch.zeros(20, 1, dtype=torch.long)
        rows["value_target"] = torch.zeros(20, 1).double()
        rows["kernel_mean"] = (MEAN + 0.1).expand(20, ACTION).double()
        rows["kernel_std"] = STD.expand(20, ACTION).double()
        torch.manual_seed(4)
        losses = self.loss(rows)["loss_actor"]
        torch.manual_seed(4)
        self.noise = torch.randn_like(rows["latent"])
        names = [f"actor_network_params.{name}" for name in ("mean", "std")]
        found = [gradients(self.loss, value) for value in losses]
        self.mean, self.std = (torch.stack([g[name] for g in found]) for name in names)
        assert set(found[0]) == set(names)


def test_linear_critic_moves_the_mean_by_its_slope_over_the_variance() -> None:
    wpo = GaussianWPO(temperature=0.0, linear=True)
    expected = -(SLOPE / STD**2).double().expand(20, ACTION)
    torch.testing.assert_close(wpo.mean, expected)
    torch.testing.assert_close(wpo.std, 2 * expected * wpo.noise)


def test_preconditioned_gradient_is_the_reparameterised_one_sample_by_sample() -> None:
    wpo = GaussianWPO(temperature=0.0, linear=True, precondition=True)
    expected = -SLOPE.double().expand(20, ACTION)
    torch.testing.assert_close(wpo.mean, expected)
    torch.testing.assert_close(wpo.std, expected * wpo.noise)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_gaussian_wpo_closed_form(temperature: float) -> None:
    """``(T gl - gq)`` times the slopes of ``gl = -(a - m) / std^2``."""
    wpo = GaussianWPO(temperature=temperature)
    mean, std = MEAN.double(), STD.double()
    action = mean + std * wpo.noise
    slope = (SLOPE - CURVATURE * action).double()
    weight = -temperature * wpo.noise / std - slope
    torch.testing.assert_close(wpo.mean, weight / std**2)
    torch.testing.assert_close(wpo.std, weight * 2 * wpo.noise / std**2)


def test_preconditioned_wpo_is_the_pathwise_gradient_of_soft_actor_critic() -> None:
    """``d/d(mean, std)`` of ``T log q(a) - Q(a)`` at ``a = mean + std xi``, with log q's own
    parameters held: what WPO leaves out has mean zero."""
    wpo = GaussianWPO(temperature=0.7, precondition=True)
    mean, std = MEAN.double().requires_grad_(), STD.double().requires_grad_()
    action = mean + std * wpo.noise
    log_q = Normal(mean.detach(), std.detach()).log_prob(action)
    value = SLOPE * action - CURVATURE * action.square() / 2
    expected = torch.autograd.grad((0.7 * log_q - value).sum(), action, retain_graph=True)[0]
    torch.testing.assert_close(wpo.mean, expected)
    torch.testing.assert_close(wpo.std, expected * wpo.noise)


def test_gaussian_wpo_finds_the_boltzmann_gaussian() -> None:
    """``exp(Q / T)`` is a Gaussian: mean c / d, variance T / d."""
    temperature = 0.5
    critic = TensorDictModule(
        Paraboloid(SLOPE.clone(), CURVATURE.clone() + 0.5),
        ["observation", "next_latent", "step"],
        ["state_action_value"],
    )
    actor = GaussianActor(MEAN.clone(), STD.clone())
    loss = DiffWPOLoss(actor, critic, temperature=temperature, precondition=True, kl_bound=1e6)
    rows = TensorDict(
        {
            "observation": torch.zeros(1024, 3),
            "latent": torch.zeros(1024, ACTION),
            "next_latent": torch.zeros(1024, ACTION),
            "step": torch.zeros(1024, 1, dtype=torch.long),
            "value_target": torch.zeros(1024, 1),
            "kernel_mean": torch.zeros(1024, ACTION),
            "kernel_std": torch.ones(1024, ACTION),
        },
        [1024],
    )
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(actor.parameters(), 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss.actor_loss(rows)[0]["loss_actor"].backward()
        optimizer.step()
    curvature = CURVATURE + 0.5
    torch.testing.assert_close(actor.mean.detach(), SLOPE / curvature, rtol=0, atol=0.05)
    expected = (temperature / curvature).sqrt()
    torch.testing.assert_close(actor.std.detach(), expected, rtol=0, atol=0.05)


# -- the trust region -------------------------------------------------------------------------


def test_outside_of_the_trust_region_the_policy_goes_back() -> None:
    """Only the divergence counts there: its gradient is zero at the behaviour policy."""
    loss = build(kl_bound=1e-12, initial_multiplier=2.0)
    rows = make_rows(loss)
    rows["kernel_mean"] = rows["kernel_mean"] + 0.05
    optimizer = torch.optim.SGD(loss.actor_network.parameters(), 1e-3)
    before = loss(rows)
    assert float(before["trust_region_fraction"]) == 0
    torch.testing.assert_close(before["loss_actor"].detach(), 2 * before["kl"])
    for _ in range(20):
        optimizer.zero_grad()
        loss(rows)["loss_actor"].backward()
        optimizer.step()
    assert float(loss(rows)["kl"]) < float(before["kl"])


def test_sampled_divergence_scatters_around_the_exact_one() -> None:
    exact, sampled = build(reduction="none"), build(reduction="none", kl_samples=4000)
    rows = make_rows(exact)
    rows["kernel_mean"] = rows["kernel_mean"] + 0.3
    rows["kernel_std"] = rows["kernel_std"] * 1.2
    now = exact.actor_network.denoising_kernel(rows)
    wanted = STEPS * kl_divergence(
        Normal(rows["kernel_mean"], rows["kernel_std"]), Normal(*now)
    ).sum(-1)
    # Multiplier and bound turn the loss of the multiplier into the divergence of each row.
    torch.testing.assert_close(exact(rows)["loss_multiplier"], -0.3 * (wanted - 0.02))
    difference = sampled(rows)["loss_multiplier"] - exact(rows)["loss_multiplier"]
    assert float(difference.abs().max().detach()) < 0.3 * 0.2 * float(wanted.max().detach())
    assert float(difference.abs().max().detach()) > 0


def test_few_samples_put_rows_of_an_unchanged_policy_on_the_wrong_side() -> None:
    """Why the exact divergence is the default."""
    fractions = []
    for samples in (None, 16):
        loss = build(kl_samples=samples)
        rows = make_rows(loss)
        rows["kernel_mean"] = rows["kernel_mean"] + 0.01
        fractions.append(float(loss(rows)["trust_region_fraction"]))
    assert fractions[0] == 1
    assert fractions[1] < 0.95


def test_actor_losses_do_not_reach_the_critic_or_the_data() -> None:
    temperature = LearnedTemperature(0.3, target_entropy=-8.0)
    loss = build(temperature=temperature, kl_bound=0.05)
    rows = make_rows(loss)
    shifts = torch.linspace(0, 0.3, len(rows)).double().unsqueeze(-1)
    rows["kernel_mean"] = rows["kernel_mean"] + shifts
    for key in ("latent", "next_latent", "observation", "value_target"):
        rows[key] = rows[key].clone().requires_grad_()
    out = loss(rows)
    assert 0 < float(out["trust_region_fraction"]) < 1
    prefixes = {
        "loss_actor": "actor_network_params.",
        "loss_qvalue": "qvalue_network_params.",
        "loss_multiplier": "multiplier.",
        "loss_alpha": "temperature.",
    }
    for key, prefix in prefixes.items():
        assert all(name.startswith(prefix) for name in gradients(loss, out[key])), key
    targets = [rows["next_latent"], rows["value_target"]]
    grads = torch.autograd.grad(out["loss_actor"], targets, retain_graph=True, allow_unused=True)
    assert grads == (None, None)


def test_value_estimates_carry_no_gradient_and_keep_the_rollout() -> None:
    loss = build()
    rollout = make_rollouts(loss)
    before = rollout.clone()
    loss.value_estimator(rollout)
    assert not any(value.requires_grad for value in rollout.values(True, True))
    assert set(rollout.keys(True, True)) - set(before.keys(True, True)) == {"value_target"}


def test_without_temperature_the_noising_kernel_does_not_move_the_score() -> None:
    loss, changed = (build(temperature=0.0) for _ in range(2))

    class Other(type(loss.actor_network)):
        def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
            mean, std = super().noising_kernel(rows)
            return Gaussian(0.5 * mean + 3, 2 * std)

    changed.actor_network.__class__ = Other
    rows = make_rows(loss)
    reached = []
    for each in (loss, changed):
        torch.manual_seed(3)
        reached.append(gradients(each, each(rows)["loss_actor"]))
    scores = [name for name in reached[0] if ".score_network." in name]
    assert scores
    for name in scores:
        torch.testing.assert_close(reached[0][name], reached[1][name])


def test_returns_of_the_last_step_are_the_action_level_ones() -> None:
    """Environment discounting: as for whole actions, with reward ``R - T sum_n LR_n``."""
    temperature, gamma, lmbda = 0.3, 0.75, 0.6
    loss = build(temperature=temperature).make_value_estimator(gamma=gamma, lmbda=lmbda)
    rollout = make_rollouts(loss)
    cost = temperature * rollout["log_ratio"]
    torch.manual_seed(5)
    target = loss.value_estimator(rollout)["value_target"]

    torch.manual_seed(5)  # the fresh steps after the last rows
    following = rollout["next"].select("observation")
    actor = loss.actor_network
    following["latent"] = actor.sample_prior((3, 8)).double()
    following["step"] = torch.zeros(3, 8, 1, dtype=torch.long)
    with torch.no_grad():
        mean, std = actor.denoising_kernel(following)
        following["next_latent"] = mean + std * torch.randn_like(mean)
        log_q = Normal(mean, std).log_prob(following["next_latent"]).sum(-1, keepdim=True)
        noising = Normal(*actor.noising_kernel(following))
        log_p = noising.log_prob(following["latent"]).sum(-1, keepdim=True)
        fresh = loss.qvalue_network(following)["state_action_value"].mean(-2)
        rows = loss.chain_rows(rollout)[..., 0]
        taken = loss.qvalue_network(rows)["state_action_value"].mean(-2)
    fresh = fresh - temperature * (log_q - log_p)
    inside = torch.cat((taken[:, 1:] - cost[:, 1:, 0], fresh[:, -1:]), 1)
    done, terminated = rollout["next", "done"], rollout["next", "terminated"]
    assert bool((done & ~terminated)[:, :-1].any())
    assert bool(terminated[:, :-1].any())
    expected = td_lambda_return_estimate(
        gamma=gamma,
        lmbda=lmbda,
        next_state_value=torch.where(done, fresh, inside),
        reward=rollout["next", "reward"] - cost.sum(-2),
        done=done,
        terminated=terminated,
    )
    # Returns of an action value do not pay for the action itself.
    torch.testing.assert_close(target[..., -1, :], expected + cost.sum(-2))
    torch.testing.assert_close(target[..., 0, :], expected + cost[..., 0, :])


@pytest.mark.parametrize("mode", ["env", "denoising_step"])
def test_rows_after_an_end_do_not_leak_into_rows_before_it(mode: str) -> None:
    loss = build(discount_mode=mode)
    rollout = make_rollouts(loss)
    for key in ("done", "terminated"):
        rollout["next", key] = torch.zeros(3, 8, 1, dtype=torch.bool)
    rollout["next", "done"][:, 3] = True
    changed = rollout.clone()
    changed["observation"][:, 4:] += 1
    changed["next", "observation"][:, 4:] += 1
    changed["next", "reward"][:, 4:] += 10
    changed["log_ratio"][:, 4:] -= 1
    changed["latents"][:, 4:] += 1
    for batch in (rollout, changed):
        torch.manual_seed(5)
        loss.value_estimator(batch)
    before, after = rollout["value_target"], changed["value_target"]
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=0)
    assert not torch.allclose(after[:, 4:], before[:, 4:])


def test_truncation_bootstraps_from_the_last_observation_not_from_the_reset_state() -> None:
    loss = build()
    rollout = make_rollouts(loss)
    for key in ("done", "terminated"):
        rollout["next", key] = torch.zeros(3, 8, 1, dtype=torch.bool)
    rollout["next", "done"][:, 2] = True

    def target(batch: TensorDictBase) -> Tensor:
        torch.manual_seed(5)
        return loss.value_estimator(batch.clone())["value_target"][:, 2, -1]

    reset, last = rollout.clone(), rollout.clone()
    reset["observation"][:, 3] += 1
    last["next", "observation"][:, 2] += 1
    torch.testing.assert_close(target(reset), target(rollout), rtol=0, atol=0)
    assert not torch.allclose(target(last), target(rollout))


def test_terminated_rows_pay_for_no_later_step() -> None:
    """The released code forgets this mask."""
    loss = build()
    rollout = make_rollouts(loss)
    rollout["next", "terminated"][:, 3] = True
    rollout["next", "done"][:, 3] = True
    target = loss.value_estimator(rollout)["value_target"][:, 3, -1]
    torch.testing.assert_close(target, rollout["next", "reward"][:, 3], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["env", "denoising_step"])
def test_without_lambda_returns_are_one_step_targets(mode: str) -> None:
    """Of the steps that were taken: rewards at the end, values of the next step before it."""
    gamma = 0.8
    loss = build(temperature=0.0, discount_mode=mode)
    loss.make_value_estimator(gamma=gamma, lmbda=0.0)
    rollout = make_rollouts(loss)
    target = loss.value_estimator(rollout)["value_target"]
    with torch.no_grad():
        value = loss.qvalue_network(loss.chain_rows(rollout))["state_action_value"].mean(-2)
    if mode == "denoising_step":
        torch.testing.assert_close(target[..., :-1, :], gamma * value[..., 1:, :])
    else:  # inside a chain lambda does not cut: everything is the return of the last step
        torch.testing.assert_close(target[..., :-1, :], target[..., -1:, :].expand(3, 8, 2, 1))
    alive = ~rollout["next", "done"][:, :-1]
    expected = rollout["next", "reward"][:, :-1] + gamma * value[:, 1:, 0]
    actual = target[:, :-1, -1]
    torch.testing.assert_close(actual[alive], expected[alive])


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_bound": 0.0}, "kl_bound must be positive.*got 0.0"),
        ({"initial_multiplier": -1.0}, "initial_multiplier=-1.0 must be between"),
        ({"kl_samples": 0}, "kl_samples must be at least 1.*got 0"),
        ({"critic_coeff": -1.0}, "critic_coeff must be"),
        ({"sampled_steps": STEPS + 1}, f"sampled_steps must be between.*got {STEPS + 1}"),
        ({"target_steps": 0}, "target_steps must be between.*got 0"),
        ({"discount_mode": "step"}, "discount_mode must be"),
        ({"critic_reduction": "max"}, "critic_reduction must be"),
        ({"reduction": "max"}, "reduction must be"),
    ],
)
def test_bad_options_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_rows_without_returns_or_kernels_raise() -> None:
    loss = build()
    rows = make_rows(loss)
    with pytest.raises(KeyError, match=r"value_target.*call loss.value_estimator"):
        loss(rows.exclude("value_target"))
    for key in ("kernel_mean", "kernel_std"):
        with pytest.raises(KeyError, match=rf"{key}.*delay_actor=True"):
            loss(rows.exclude(key))


def test_target_actor_with_running_statistics_raises() -> None:
    actor, critic = make_denoising_q_networks()
    actor.score_network.normalizer = RunningNorm(3)
    with pytest.raises(ValueError, match=r"delay_actor=True.*running statistics"):
        DiffWPOLoss(actor, critic, temperature=0.1, delay_actor=True)


def test_rollout_with_returns_equals_its_rows() -> None:
    loss = build()
    rollout = loss.value_estimator(make_rollouts(loss))
    outs = []
    for batch in (rollout, loss.chain_rows(rollout)):
        torch.manual_seed(3)
        outs.append(loss(batch))
    for key, value in outs[0].items():
        torch.testing.assert_close(value, outs[1][key])


def test_estimator_checks_its_arguments_and_the_time_dimension() -> None:
    loss = build()
    for bad in ({"gamma": 1.1}, {"lmbda": -0.1}):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            loss.make_value_estimator(**bad)
    assert isinstance(loss.value_estimator, DenoisingTDLambda)
    rollout = make_rollouts(loss)
    rollout.names = ["time", None]
    with pytest.raises(ValueError, match="time dimension must be the last"):
        loss.value_estimator(rollout)


def test_entropy_is_that_of_chains() -> None:
    """On the behaviour policy itself ``-N mean(LR)`` estimates ``-sum_n LR_n``."""
    loss = build()
    torch.manual_seed(0)
    rollout = make_rollouts(loss, (50, 40))
    rows = loss.chain_rows(loss.value_estimator(rollout)).reshape(-1)
    expected = -rollout["log_ratio"].sum((-1, -2))
    error = 4 * float(expected.std()) / math.sqrt(expected.numel() / 2)
    assert float(loss(rows)["entropy"]) == pytest.approx(float(expected.mean()), abs=error)
