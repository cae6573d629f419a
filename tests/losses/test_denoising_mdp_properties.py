"""Properties that the denoising MDP must have (arXiv 2512.02019), on the real classes."""

import math

import pytest
import torch
from loss_builders import (
    OBSERVATION,
    TableChainActor,
    connect,
    gradients,
    make_networks,
    make_rollout,
    to_double,
)
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from diffpolicy.actors import ChainActor
from diffpolicy.sde import DenoisingProcess
from objectives import DiffPPOLoss, LearnedTemperature

STEPS = 3


def make_loss(**options) -> DiffPPOLoss:
    torch.manual_seed(0)
    actor, critic, _ = make_networks()
    return DiffPPOLoss(actor, critic, **options).double()


def estimated_rows(loss: DiffPPOLoss, rollout: TensorDictBase) -> TensorDictBase:
    return loss.chain_rows(loss.value_estimator(rollout)).reshape(-1)


def test_log_ratios_sum_to_the_density_ratio_of_the_paths() -> None:
    """Both path densities as one joint Gaussian each, with a score that is linear in x."""
    slope, steps = -0.4, 4
    process = DenoisingProcess(1, steps, prior_std=1.3, step_size=0.2, friction=0.7).double()

    class Linear(nn.Module):
        def forward(self, latent: Tensor, step: Tensor, observation: Tensor) -> Tensor:
            return slope * latent

    actor, _, _ = make_networks(steps=steps)
    actor = actor.double()
    actor.process, actor.score_network = process, Linear()
    actor.squash.scale, actor.squash.shift = torch.ones(1), torch.zeros(1)
    rollout = TensorDict({"observation": torch.zeros(5, OBSERVATION, dtype=torch.float64)}, [5])
    with torch.no_grad():
        path = actor(rollout)["latents"].squeeze(-1)
        eta = process.step_sizes().squeeze(-1)
    nu2 = 1.3**2

    def joint(first: int, order: list[int], factors: list[Tensor], noise: list[Tensor]) -> Tensor:
        """Log density given one end: each latent is factor * previous + noise."""
        size = len(order)
        mixing = torch.eye(size, dtype=torch.float64)
        for i in range(1, size):
            mixing[i, i - 1] = -factors[i]
        precision = mixing.T @ torch.diag(1 / torch.stack(noise)) @ mixing
        shift = torch.zeros(5, size, dtype=torch.float64)
        shift[:, 0] = factors[0] * path[:, first]
        mean = torch.linalg.solve(mixing, shift.T).T
        return MultivariateNormal(mean, precision_matrix=precision).log_prob(path[:, order])

    denoising = joint(
        0,
        list(range(1, steps + 1)),
        [1 + eta[n] * (slope - 1 / nu2) for n in range(steps)],
        [2 * eta[n] for n in range(steps)],
    )
    after = [min(n + 1, steps - 1) for n in range(steps)]
    noising = joint(
        steps,
        list(range(steps - 1, -1, -1)),
        [1 - eta[after[n]] / nu2 for n in range(steps - 1, -1, -1)],
        [2 * eta[after[n]] for n in range(steps - 1, -1, -1)],
    )
    expected = denoising - noising
    torch.testing.assert_close(rollout["log_ratio"].sum((-1, -2)), expected)


def test_last_step_size_moves_the_noising_density_of_the_last_two_steps() -> None:
    loss = make_loss(temperature=0.3, advantage_normalization=None)
    loss.reduction = "none"
    rows = estimated_rows(loss, to_double(make_rollout(loss.actor_network, (2, 2))))
    noising = loss(rows)["loss_noising"].reshape(-1, STEPS)
    for step in range(STEPS):
        gradient = gradients(loss, noising[:, step].sum())
        reached = gradient["actor_network_params.process.raw_step_size"].squeeze(-1) != 0
        assert reached.tolist() == [index == min(step + 1, STEPS - 1) for index in range(STEPS)]


def test_noising_loss_reaches_step_size_and_friction_only() -> None:
    loss = make_loss(temperature=0.3)
    rows = estimated_rows(loss, to_double(make_rollout(loss.actor_network, (3, 4))))
    reached = gradients(loss, loss(rows)["loss_noising"])
    prefix = "actor_network_params.process."
    assert set(reached) == {f"{prefix}raw_step_size", f"{prefix}raw_friction"}
    assert all(bool(gradient.any()) for gradient in reached.values())


def test_fixed_process_has_no_noising_gradient() -> None:
    torch.manual_seed(0)
    actor, critic, _ = make_networks(learn_process=False)
    loss = DiffPPOLoss(actor, critic, temperature=0.3)
    out = loss(estimated_rows(loss, make_rollout(loss.actor_network, (3, 4))))
    assert not out["loss_noising"].requires_grad
    assert out["loss_objective"].requires_grad


def test_first_minibatch_has_unit_ratios_and_centred_advantages() -> None:
    loss = make_loss(temperature=0.3)
    loss.reduction = "none"
    rows = estimated_rows(loss, to_double(make_rollout(loss.actor_network, (3, 4))))
    out = loss(rows)
    advantage = rows["advantage"].squeeze(-1)
    torch.testing.assert_close(-out["loss_objective"].detach(), advantage - advantage.mean())
    for key, value in (("max_ratio", 1.0), ("ESS", 1.0), ("clip_fraction", 0.0), ("kl", 0.0)):
        torch.testing.assert_close(out[key], torch.full_like(out[key], value))
    assert abs(float(out["kl_approx"].mean())) < 1e-12


def test_without_temperature_the_noising_kernel_does_not_matter() -> None:
    loss = make_loss(temperature=0.0)
    rows = estimated_rows(loss, to_double(make_rollout(loss.actor_network, (3, 4))))
    out = loss(rows)
    assert float(out["loss_noising"]) == 0

    class Other(type(loss.actor_network)):
        def noising_kernel(self, rows: TensorDictBase):
            mean, std = super().noising_kernel(rows)
            return type(super().noising_kernel(rows))(mean + 3, 2 * std)

    changed = make_loss(temperature=0.0)
    changed.actor_network.__class__ = Other
    other = changed(rows)
    for key in ("loss_objective", "loss_noising", "loss_critic"):
        torch.testing.assert_close(other[key], out[key])
    assert not torch.allclose(other["entropy"], out["entropy_bound"])
    wanted = gradients(loss, out["loss_objective"])
    for name, gradient in gradients(changed, other["loss_objective"]).items():
        torch.testing.assert_close(gradient, wanted[name])


class BlindValue(nn.Module):
    """``V(s)`` with the signature of ``V(s, x_n, n)``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, observation: Tensor, latent: Tensor, step: Tensor) -> Tensor:
        return self.net(observation)


class Reduction:
    """DiffPPO with N = 1, eta = nu^2 and a score blind to x_0, next to TorchRL's Gaussian PPO."""

    nu = 1.4

    def __init__(self, temperature: float | LearnedTemperature) -> None:
        torch.manual_seed(0)
        self.score = nn.Sequential(nn.Linear(OBSERVATION, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.value = nn.Sequential(nn.Linear(OBSERVATION, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.diffusion = TableChainActor(self.score, self.nu, action_dim=2)
        in_keys = ["observation", "latent", "step"]
        critic = TensorDictModule(BlindValue(self.value), in_keys, ["state_value"])
        self.ours = DiffPPOLoss(
            self.diffusion,
            critic,
            temperature=temperature,
            advantage_normalization=None,
            critic_coeff=0.5,
        )
        nu = self.nu

        class Policy(nn.Module):
            def __init__(self, score: nn.Module) -> None:
                super().__init__()
                self.score = score

            def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
                mean = nu**2 * self.score(observation)
                return mean, torch.full_like(mean, nu * math.sqrt(2))

        gaussian = ProbabilisticActor(
            TensorDictModule(Policy(self.score), ["observation"], ["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=lambda loc, scale: Independent(Normal(loc, scale), 1),
            return_log_prob=True,
        )
        self.value_operator = ValueOperator(self.value, in_keys=["observation"])
        self.theirs = ClipPPOLoss(
            gaussian,
            self.value_operator,
            clip_epsilon=0.2,
            entropy_bonus=False,
            critic_coeff=0.5,
            normalize_advantage=False,
        )
        self.rollout = connect(make_rollout(self.diffusion, (3, 8), dtype=torch.float64))

    def soft_rollout(self, temperature: float) -> TensorDictBase:
        """The rollout as TorchRL's PPO sees it, its reward less T times the log-ratio."""
        soft = self.rollout.clone()
        penalty = temperature * self.rollout["log_ratio"].squeeze(-1)
        soft["next", "reward"] = self.rollout["next", "reward"] - penalty
        soft["action"] = self.rollout["latents"][..., 1, :]
        soft["action_log_prob"] = self.rollout["log_prob"].squeeze(-1).squeeze(-1)
        return soft


def test_custom_actor_is_a_chain_actor() -> None:
    assert isinstance(TableChainActor(nn.Linear(3, 1)), ChainActor)


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_reduction_to_gaussian_ppo(temperature: float) -> None:
    both = Reduction(temperature)
    both.ours.make_value_estimator(gamma=0.75, lmbda=0.5)
    soft = both.soft_rollout(temperature)
    both.ours.value_estimator(both.rollout)
    GAE(gamma=0.75, lmbda=0.5, value_network=both.value_operator)(soft)
    for key in ("advantage", "value_target"):
        torch.testing.assert_close(both.rollout[key].squeeze(-2), soft[key])

    # Some updates later: the ratios are off 1, some are clipped.
    with torch.no_grad():
        for parameter in both.score.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    rows = both.ours.chain_rows(both.rollout)
    now = both.diffusion.denoising_kernel(rows)
    log_q = Independent(Normal(*now), 1).log_prob(rows["next_latent"]).detach()
    refresh = temperature * (rows["log_prob"].squeeze(-1) - log_q)
    soft["advantage"] = both.rollout["advantage"].squeeze(-2) + refresh
    soft["value_target"] = both.rollout["value_target"].squeeze(-2)
    ours, theirs = both.ours(both.rollout), both.theirs(soft.reshape(-1))
    for key in ("loss_objective", "loss_critic"):
        torch.testing.assert_close(ours[key], theirs[key])
        mine = torch.autograd.grad(ours[key], list(both.ours.parameters()), allow_unused=True)
        other = torch.autograd.grad(theirs[key], list(both.theirs.parameters()), allow_unused=True)
        assert [g is None for g in mine] == [g is None for g in other]
        for a, b in zip(mine, other, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b)
    assert 0 < float(ours["clip_fraction"]) < 1
    for key in ("clip_fraction", "ESS", "max_ratio", "explained_variance"):
        torch.testing.assert_close(ours[key], theirs[key].double().reshape(()))


def test_noising_density_is_independent_of_the_action() -> None:
    """The process itself: with N = 1 and eta = nu^2 the noising mean vanishes."""
    nu = 1.5
    process = DenoisingProcess(
        2, 1, prior_std=nu, schedule="constant", step_size=nu**2, friction=1.0
    ).double()
    step = torch.zeros(4, dtype=torch.long)
    mean, std = process.noising_kernel(torch.randn(4, 2, dtype=torch.float64), step)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
    torch.testing.assert_close(std, torch.full_like(std, nu * math.sqrt(2)))
    latent, score = torch.randn(2, 4, 2, dtype=torch.float64)
    mean, _ = process.denoising_kernel(latent, score, step)
    torch.testing.assert_close(mean, nu**2 * score, rtol=1e-6, atol=1e-6)


def test_first_step_advantage_is_the_action_level_one() -> None:
    loss = make_loss(temperature=0.5)
    loss.make_value_estimator(gamma=0.75, lmbda=0.5)
    rollout = connect(to_double(make_rollout(loss.actor_network, (3, 7))))
    torch.manual_seed(5)
    loss.value_estimator(rollout)
    # The same fresh prior samples make the bootstrap values.
    torch.manual_seed(5)
    fresh = loss.actor_network.sample_prior(rollout.batch_size).double()
    last = rollout["next"].select("observation")
    last.set("latent", fresh).set("step", torch.zeros(3, 7, 1, dtype=torch.long))
    with torch.no_grad():
        bootstrap = loss.critic_network(last)["state_value"].squeeze(-1)
    value = rollout["state_value"][..., 0, 0]
    reward = rollout["next", "reward"].squeeze(-1)
    soft = reward - 0.5 * rollout["log_ratio"].sum((-1, -2))
    done, terminated = (rollout["next", key].squeeze(-1) for key in ("done", "terminated"))
    assert bool((done & ~terminated).any())
    for env in range(3):
        running = 0.0
        for t in reversed(range(7)):
            cut = bool(done[env, t]) or t == 6
            following = bootstrap[env, t] if cut else value[env, t + 1]
            alive = 0.0 if terminated[env, t] else 1.0
            delta = soft[env, t] + 0.75 * alive * following - value[env, t]
            running = delta + (0.0 if done[env, t] else 0.75 * 0.5) * running
            actual = float(rollout["advantage"][env, t, 0, 0])
            assert actual == pytest.approx(float(running), rel=1e-9)


def test_rows_after_an_end_do_not_leak_into_rows_before_it() -> None:
    loss = make_loss(temperature=0.5)
    rollout = connect(to_double(make_rollout(loss.actor_network, (2, 8))))
    rollout["next", "done"] = torch.zeros(2, 8, 1, dtype=torch.bool)
    rollout["next", "terminated"] = torch.zeros(2, 8, 1, dtype=torch.bool)
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
    for key in ("advantage", "value_target"):
        torch.testing.assert_close(changed[key][:, :4], rollout[key][:, :4], rtol=0, atol=0)
        assert not torch.allclose(changed[key][:, 4:], rollout[key][:, 4:])


def test_actor_losses_do_not_reach_the_critic_or_the_latents() -> None:
    loss = make_loss(temperature=0.3)
    rollout = to_double(make_rollout(loss.actor_network, (3, 4)))
    assert not any(v.requires_grad for v in loss.value_estimator(rollout).values(True, True))
    out = loss(loss.chain_rows(rollout))
    for key in ("loss_objective", "loss_noising"):
        assert all(name.startswith("actor_network_params") for name in gradients(loss, out[key]))
    assert all(
        name.startswith("critic_network_params") for name in gradients(loss, out["loss_critic"])
    )


# -- defects of the released code that are not copied -----------------------------------------


def test_truncation_bootstraps_from_the_last_observation_not_from_the_reset_state() -> None:
    loss = make_loss()
    rollout = connect(to_double(make_rollout(loss.actor_network, (2, 6))))
    rollout["next", "done"] = torch.zeros(2, 6, 1, dtype=torch.bool)
    rollout["next", "terminated"] = torch.zeros(2, 6, 1, dtype=torch.bool)
    rollout["next", "done"][:, 2] = True

    def advantage(batch: TensorDictBase) -> Tensor:
        torch.manual_seed(5)
        return loss.value_estimator(batch.clone())["advantage"][:, 2, -1]

    expected = advantage(rollout)
    reset, last = rollout.clone(), rollout.clone()
    reset["observation"][:, 3] += 1
    last["next", "observation"][:, 2] += 1
    torch.testing.assert_close(advantage(reset), expected, rtol=0, atol=0)
    assert not torch.allclose(advantage(last), expected)


def test_own_log_ratio_of_the_last_step_is_not_discounted() -> None:
    temperature, gamma = 0.5, 0.6
    loss = make_loss(temperature=temperature)
    loss.make_value_estimator(gamma=gamma, lmbda=0.7)
    rollout = to_double(make_rollout(loss.actor_network, (2, 4)))
    changed = rollout.clone()
    changed["log_ratio"][..., -1, :] += 1
    for batch in (rollout, changed):
        torch.manual_seed(5)
        loss.value_estimator(batch)
    difference = changed["advantage"] - rollout["advantage"]
    last_row = torch.full_like(difference[:, -1], -temperature)
    torch.testing.assert_close(difference[:, -1], last_row)


def test_the_entropy_bound_of_rows_is_the_actors_own() -> None:
    """On the behaviour policy itself: the mean over all steps is the mean bound of the chains."""
    loss = make_loss()
    loss.actor_network.return_entropy_bound = True
    rollout = to_double(make_rollout(loss.actor_network, (3, 4)))
    out = loss(estimated_rows(loss, rollout))
    torch.testing.assert_close(out["entropy_bound"], rollout["entropy_bound"].mean())
    torch.testing.assert_close(out["entropy"], -rollout["log_ratio"].sum(-2).mean())
