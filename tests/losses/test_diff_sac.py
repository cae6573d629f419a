"""Behaviour of the DiffSAC loss: its reduction to SAC, its fixed point, gradients, options."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_builders import (
    ACTION,
    OBSERVATION,
    STEPS,
    TableChainActor,
    gradients,
    make_denoising_q_networks,
    make_networks,
    make_off_policy_networks,
    make_rollout,
)
from rowwise import noise_of, rowwise_draws
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss

from diffpolicy.actors import ActionSquash, DenoisingActor
from diffpolicy.networks import CategoricalSupport
from diffpolicy.sde import DenoisingProcess, Gaussian
from objectives import DiffSACLoss, FixedTemperature, LearnedTemperature


def build(**options: Any) -> DiffSACLoss:
    torch.manual_seed(0)
    actor, critic = make_denoising_q_networks()
    options = {"temperature": 0.3, "delay_qvalue": False, **options}
    return DiffSACLoss(actor, critic, **options)


def transitions(loss: DiffSACLoss, rows: int = 16) -> TensorDictBase:
    batch = make_rollout(loss.actor_network, (rows,), dtype=torch.get_default_dtype())
    batch.names = None
    return batch


class FixedStart(TableChainActor):
    """The noising density of a start is what ``x_1`` makes of it.

    With ``contraction`` zero the noising density of the start is one constant.
    """

    contraction = 0.0

    def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
        _, std = super().noising_kernel(rows)
        return Gaussian(self.contraction * rows.get("next_latent"), std)

    def squash_log_det(self, latent: Tensor) -> Tensor:
        return -2 * latent.cosh().log().sum(-1, keepdim=True)


class BlindTwins(nn.Module):
    """Networks ``Q(s, a)`` with the signature of ``Q(s, x_{n+1}, n)``."""

    def __init__(self, nets: list[nn.Module], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.nets, self.act = nn.ModuleList(nets), act

    def forward(self, observation: Tensor, next_latent: Tensor, step: Tensor) -> Tensor:
        action = self.act(next_latent)
        return torch.stack([net(observation, action) for net in self.nets], -2)


class RowwiseNormal(Independent):
    """A Gaussian whose noise is a function of its mean."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale), 1)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        normal = self.base_dist
        return normal.loc + normal.scale * noise_of(normal.loc, 0, normal.loc.shape[-1])


class RowwiseTanhNormal(TanhNormal):
    """The same, squashed into (-1, 1)."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(loc, scale)
        self.base_dist = RowwiseNormal(loc, scale)


class GaussianPolicy(nn.Module):
    """Mean ``nu^2 f(s)`` and std ``nu sqrt(2)``, as the only kernel of the chain."""

    def __init__(self, score: nn.Module, nu: float) -> None:
        super().__init__()
        self.score, self.nu = score, nu

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.nu**2 * self.score(observation)
        return mean, torch.full_like(mean, self.nu * math.sqrt(2))


class JointInput(nn.Module):
    """A network of the concatenated observation and action."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat((observation, action), -1))


def small_net(features: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, outputs))


class Reduction:
    """DiffSAC with N = 1, eta = nu^2 and a score blind to x_0, next to TorchRL's Gaussian SAC."""

    nu, gamma, alpha, target_entropy = 1.4, 0.8, 0.6, -2.0

    def __init__(self, *, squashed: bool = False) -> None:
        torch.manual_seed(0)
        self.squashed = squashed
        self.act: Callable[[Tensor], Tensor] = torch.tanh if squashed else nn.Identity()
        self.score = small_net(OBSERVATION, ACTION)
        self.critics = [JointInput(small_net(OBSERVATION + ACTION, 1)) for _ in range(2)]
        self.diffusion = FixedStart(self.score, self.nu, action_dim=ACTION)
        in_keys = ["observation", "next_latent", "step"]
        critic = TensorDictModule(
            BlindTwins(self.critics, self.act), in_keys, ["state_action_value"]
        )
        temperature = LearnedTemperature(self.alpha, target_entropy=self.target_entropy)
        self.ours = DiffSACLoss(
            self.diffusion,
            critic,
            temperature=temperature,
            delay_qvalue=False,
            squashed_entropy=squashed,
        ).make_value_estimator(gamma=self.gamma)
        self.batch = make_rollout(self.diffusion, (16,), dtype=torch.float64)
        self.theirs = self.make_sac()

    def draws(self) -> TensorDictBase:
        """The same noise for ours; every chain starts at zero."""

        def noise(observation: Tensor) -> Tensor:
            mean = self.nu**2 * self.score(observation)
            return noise_of(mean, 0, ACTION).unsqueeze(-2)

        batch = self.batch
        target = noise(batch["next", "observation"]).unsqueeze(-2)
        return TensorDict(
            {
                "proposal": noise(batch["observation"]),
                "prior": torch.zeros(len(batch), 1, ACTION),
                "target": target,
            },
            batch.batch_size,
        ).detach()

    def make_sac(self) -> SACLoss:
        gaussian = ProbabilisticActor(
            TensorDictModule(
                GaussianPolicy(self.score, self.nu), ["observation"], ["loc", "scale"]
            ),
            in_keys=["loc", "scale"],
            distribution_class=RowwiseTanhNormal if self.squashed else RowwiseNormal,
            return_log_prob=True,
        )
        sac = SACLoss(
            gaussian,
            [ValueOperator(q, in_keys=["observation", "action"]) for q in self.critics],
            loss_function="l2",
            alpha_init=self.alpha,
            target_entropy=self.target_entropy,
            delay_qvalue=False,
        )
        sac.make_value_estimator(gamma=self.gamma)
        return sac

    def noising_log_prob(self, latent: Tensor) -> Tensor:
        """``log p(x_0)``, which x_1 and the policy do not enter."""
        normal = Normal(torch.zeros_like(latent), self.nu * math.sqrt(2))
        return normal.log_prob(latent).sum(-1)

    def constant_removed(self) -> TensorDictBase:
        """The batch as SAC sees it: ``gamma T log p(x_0)`` moved into the reward."""
        batch = self.batch.clone()
        batch["action"] = self.act(batch["latents"][..., 1, :])
        alive = 1 - batch["next", "terminated"].double()
        log_prob = self.noising_log_prob(torch.zeros(ACTION))
        batch["next", "reward"] += self.gamma * alive * self.alpha * log_prob
        return batch


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("squashed", [False, True])
def test_reduction_to_gaussian_sac(squashed: bool) -> None:
    both = Reduction(squashed=squashed)
    assert bool(both.batch["next", "terminated"].any())
    soft = both.constant_removed()
    ours, theirs = both.ours(both.batch, draws=both.draws()), both.theirs(soft)
    constant = both.noising_log_prob(both.batch["latents"][..., 0, :]).mean()

    torch.testing.assert_close(ours["loss_qvalue"], theirs["loss_qvalue"])
    torch.testing.assert_close(both.batch["td_error"], soft["td_error"])
    mine = torch.autograd.grad(ours["loss_qvalue"], list(both.ours.qvalue_network.parameters()))
    # TorchRL stacks the parameters of the critics.
    stacked = dict(both.theirs.qvalue_network_params.items(True, True))
    other = torch.autograd.grad(theirs["loss_qvalue"], list(stacked.values()))
    other = dict(zip(stacked, other, strict=True))
    names = [name for name, _ in both.ours.qvalue_network.named_parameters()]
    for name, gradient in zip(names, mine, strict=True):
        _, _, member, *path = name.split(".")
        torch.testing.assert_close(gradient, other["module", *path][int(member)])

    torch.testing.assert_close(ours["loss_actor"], theirs["loss_actor"] - both.alpha * constant)
    mine = torch.autograd.grad(ours["loss_actor"], list(both.score.parameters()))
    other = torch.autograd.grad(theirs["loss_actor"], list(both.score.parameters()))
    torch.testing.assert_close(mine, other)

    torch.testing.assert_close(ours["entropy"], theirs["entropy"] + constant)
    (slope,) = torch.autograd.grad(ours["loss_alpha"], both.ours.temperature.log_alpha)
    (other_slope,) = torch.autograd.grad(theirs["loss_alpha"], both.theirs.log_alpha)
    # Ours is the slope of T in log T; the constant moves the target entropy.
    torch.testing.assert_close(slope, both.alpha * (other_slope + constant))


@pytest.mark.usefixtures("float64")
def test_one_step_alone_is_not_sac() -> None:
    """Once the noising density depends on the action, the policy's gradient is another."""
    both = Reduction()
    both.diffusion.contraction = 0.3
    parameters = list(both.score.parameters())
    mine = torch.autograd.grad(both.ours.actor_loss(both.batch, draws=both.draws())[0], parameters)
    other = torch.autograd.grad(both.theirs.actor_loss(both.constant_removed())[0], parameters)
    assert not torch.allclose(mine[0], other[0], rtol=0.05)


@pytest.mark.parametrize("changed", [False, True])
def test_actor_loss_does_not_reach_the_critic_or_the_data(changed: bool) -> None:
    names = ("squashed_entropy", "fresh_chains", "center_entropy")
    loss = build(
        sampled_steps=STEPS,
        temperature=LearnedTemperature(0.3, target_entropy=-8.0),
        **dict.fromkeys(names, changed),
    )
    batch = transitions(loss)
    for key in ("latents", "observation"):
        batch[key].requires_grad_()
    out = loss(batch)
    assert all(
        name.startswith("actor_network_params") for name in gradients(loss, out["loss_actor"])
    )
    critics = set(gradients(loss, out["loss_qvalue"]))
    assert critics
    assert all(name.startswith("qvalue_network_params") for name in critics)
    assert set(gradients(loss, out["loss_alpha"])) == {"temperature.log_alpha"}
    assert not any(v.requires_grad for k, v in out.items() if not k.startswith("loss_"))


@pytest.mark.parametrize("fresh", [False, True])
def test_no_gradient_passes_from_one_step_to_the_next(fresh: bool) -> None:
    """A step's loss moves its own step size and that of its noising kernel, no other."""
    loss = build(reduction="none", fresh_chains=fresh)
    batch = transitions(loss, 40)
    draws = loss.draw(batch)
    value, _ = loss.actor_loss(batch, draws=draws)
    step = draws["step"].flatten()
    assert set(step.tolist()) == set(range(STEPS))
    for row, n in enumerate(step.tolist()):
        gradient = gradients(loss, value[row])["actor_network_params.process.raw_step_size"]
        reached = {i for i, g in enumerate(gradient.flatten().tolist()) if g != 0}
        assert reached == {n, min(n + 1, STEPS - 1)}


class RestOfTheChain(nn.Module):
    """The exact ``Q_n``: one sample of what the actor's later steps and the reward give."""

    def __init__(self, actor: DenoisingActor, reward: Any, temperature: float) -> None:
        super().__init__()
        self.actor, self.reward, self.temperature = actor.requires_grad_(False), reward, temperature

    def forward(self, observation: Tensor, next_latent: Tensor, step: Tensor) -> Tensor:
        cost = torch.zeros_like(next_latent[..., :1])
        for later in range(1, self.actor.denoising_steps):
            rows = TensorDict({"observation": observation, "latent": next_latent}, step.shape[:-1])
            rows["step"] = torch.full_like(step, later)
            mean, std = self.actor.denoising_kernel(rows)
            moved = mean + std * torch.randn_like(mean)
            log_q = Normal(mean, std).log_prob(moved).sum(-1, keepdim=True)
            noising = Normal(*self.actor.noising_kernel(rows.set("next_latent", moved)))
            log_ratio = log_q - noising.log_prob(next_latent).sum(-1, keepdim=True)
            taken = step < later
            cost = cost + torch.where(taken, log_ratio, 0.0)
            next_latent = torch.where(taken, moved, next_latent)
        value = self.reward(next_latent) - self.temperature * cost
        return value.unsqueeze(-2)


def test_with_exact_critics_the_steps_add_up_to_the_gradient_through_the_chain() -> None:
    """The policy gradient of the objective, step sizes and friction included."""
    temperature = 0.6

    def reward(latent: Tensor) -> Tensor:
        return -2 * (latent.square() - 0.5).square().sum(-1, keepdim=True)

    torch.manual_seed(0)
    actor, _ = make_denoising_q_networks()
    critic = TensorDictModule(
        RestOfTheChain(copy.deepcopy(actor), reward, temperature),
        ["observation", "next_latent", "step"],
        ["state_action_value"],
    )
    loss = DiffSACLoss(
        actor, critic, temperature=temperature, sampled_steps=STEPS, delay_qvalue=False
    )
    observation = torch.randn(OBSERVATION)
    parameters = dict(actor.named_parameters())
    ours, direct = ({name: 0.0 for name in parameters} for _ in range(2))
    for _ in range(8):
        states = observation.expand(4000, -1)
        chain = actor.sample_chain(states)
        bound = reward(chain.latents[:, -1]) - temperature * chain.log_ratio.sum(-2)
        batch = TensorDict({"observation": states, "latents": chain.latents.detach()}, [4000])
        batch["action"] = actor.squash(batch["latents"][:, -1])
        following = {"observation": states, "terminated": torch.ones(4000, 1).bool()}
        following["reward"] = torch.zeros(4000, 1)
        batch["next"] = TensorDict(following, [4000])
        value, _ = loss.actor_loss(batch)
        for total, objective in ((ours, STEPS * value), (direct, -bound.mean())):
            gradient = torch.autograd.grad(objective, list(parameters.values()))
            for name, entry in zip(parameters, gradient, strict=True):
                total[name] = total[name] + entry / 8
    for name in ("process.raw_step_size", "process.raw_friction"):
        scale = float(direct[name].abs().max())
        torch.testing.assert_close(ours[name], direct[name], rtol=0, atol=0.1 * scale)
    ours, direct = (torch.cat([g.flatten() for g in x.values()]) for x in (ours, direct))
    assert float(torch.cosine_similarity(ours, direct, dim=0)) > 0.99
    assert float(ours.norm() / direct.norm()) == pytest.approx(1, abs=0.05)


# -- fresh chains -----------------------------------------------------------------------------


def test_fresh_chains_are_sampled_anew_whatever_the_exploration_type() -> None:
    """Deterministic chains, which TorchRL's losses would get, are of no use."""
    loss = build(fresh_chains=True, sampled_steps=STEPS, reduction="none")
    batch = transitions(loss, 1).expand(2000).clone()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        fresh = loss._batch(batch, None).fresh
    assert not fresh["next_latent"].requires_grad
    wanted = loss.actor_network.sample_chain(batch["observation"]).latents[:, -1]
    last = (fresh["step"] == STEPS - 1).squeeze(-1)
    found = fresh["next_latent"][last]
    assert len(found) == 2000
    torch.testing.assert_close(found.mean(0), wanted.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(found.std(0), wanted.std(0), rtol=0.1, atol=0)


def test_fresh_chains_follow_the_policy_as_it_is_trained() -> None:
    loss = build(fresh_chains=True, sampled_steps=STEPS)
    batch = transitions(loss)
    with torch.no_grad():
        loss.actor_network.process.raw_step_size.fill_(-20.0)  # no noise, no drift
    rows, fresh = loss._batch(batch, None)[1:3]
    torch.testing.assert_close(fresh["next_latent"], fresh["latent"], rtol=0, atol=1e-3)
    assert not torch.allclose(rows["next_latent"], rows["latent"], rtol=0, atol=1e-1)


def test_fresh_chains_need_nothing_but_the_keys_of_the_loss() -> None:
    loss = build(fresh_chains=True, sampled_steps=STEPS, target_steps=2)
    batch = transitions(loss)
    torch.manual_seed(2)
    expected = loss(batch.select(*loss.in_keys))
    before = batch.clone()
    torch.manual_seed(2)
    out = loss(batch)
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value)
    assert set(batch.keys(True, True)) == {*before.keys(True, True), "td_error"}
    for key, value in before.items(True, True):
        assert torch.equal(batch[key], value), key


# -- no temperature ---------------------------------------------------------------------------


def test_without_temperature_the_noising_kernel_does_not_matter() -> None:
    loss, changed = (build(temperature=0.0, sampled_steps=STEPS) for _ in range(2))

    class Other(type(loss.actor_network)):
        def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
            mean, std = super().noising_kernel(rows)
            return Gaussian(mean + 3, 2 * std)

    changed.actor_network.__class__ = Other
    batch = transitions(loss)
    draws = rowwise_draws(loss, batch)
    out, other = loss(batch, draws=draws), changed(batch, draws=draws)
    for key in ("loss_qvalue", "loss_actor"):
        torch.testing.assert_close(other[key], out[key])
        wanted = gradients(loss, out[key])
        for name, gradient in gradients(changed, other[key]).items():
            torch.testing.assert_close(gradient, wanted[name])
    assert not torch.allclose(other["entropy"], out["entropy_bound"])


class Quadratics(nn.Module):
    """``Q_n(x) = w_n (1, x, x^2)``."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(steps, 3))

    def forward(self, observation: Tensor, next_latent: Tensor, step: Tensor) -> Tensor:
        powers = torch.cat((torch.ones_like(next_latent), next_latent, next_latent**2), -1)
        value = (powers * self.weight[step.squeeze(-1)]).sum(-1, keepdim=True)
        return value.unsqueeze(-2)


class LinearScore(nn.Module):
    def forward(self, latent: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        return 0.4 - 0.7 * latent


def soft_values(actor: DenoisingActor, reward: Any, temperature: float, grid: Tensor) -> list:
    """``V_{n+1}`` on a grid of latents for n = 0..N-1 by quadrature, the last one the reward."""
    process, score = actor.process, LinearScore()
    values = [reward(grid)]
    for n in reversed(range(1, process.denoising_steps)):
        step = torch.full((len(grid),), n)
        mean, std = process.denoising_kernel(
            grid[:, None], score(grid[:, None], step, grid[:, None]), step
        )
        log_q = Normal(mean, std).log_prob(grid)  # [from, to]
        back_mean, back_std = process.noising_kernel(grid[:, None], step)
        log_p = Normal(back_mean, back_std).log_prob(grid).T
        inner = log_q.exp() * (values[0] - temperature * (log_q - log_p))
        values.insert(0, torch.trapezoid(inner, grid).detach())
    return values


@pytest.mark.parametrize("target_steps", [1, 3])
def test_trained_critics_are_the_soft_values_of_the_next_step(target_steps: int) -> None:
    """A bandit: Q_{N-1} becomes the reward, every other Q_n becomes V_{n+1}."""
    temperature, steps = 0.4, 3
    process = DenoisingProcess(1, steps, step_size=0.25, schedule="constant")
    bound = torch.ones(1)
    actor = DenoisingActor(process, LinearScore(), ActionSquash(-bound, bound), return_chain=True)
    critic = TensorDictModule(
        Quadratics(steps), ["observation", "next_latent", "step"], ["state_action_value"]
    )
    loss = DiffSACLoss(
        actor,
        critic,
        temperature=temperature,
        sampled_steps=steps,
        target_steps=target_steps,
        delay_qvalue=False,
    )

    def reward(latent: Tensor) -> Tensor:
        return -((latent - 0.5) ** 2)

    torch.manual_seed(0)
    optimizer = torch.optim.Adam(loss.qvalue_network.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 500)
    for _ in range(500):
        observation = torch.zeros(256, 1)
        batch = actor(TensorDict({"observation": observation}, [256])).detach()
        following = {"observation": observation, "terminated": torch.ones(256, 1).bool()}
        following["reward"] = reward(batch["latents"][:, -1])
        value, _ = loss.qvalue_loss(batch.set("next", TensorDict(following, [256])))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()

    grid = torch.linspace(-8, 8, 1601)
    chosen = grid.abs() < 1.5
    expected = soft_values(actor, reward, temperature, grid)
    for n in range(steps):
        rows = grid[chosen, None]
        learned = critic.module(rows, rows, torch.full(rows.shape, n))[:, 0, 0]
        torch.testing.assert_close(learned.detach(), expected[n][chosen], rtol=0, atol=0.05)
    spread = (expected[0] - expected[1])[chosen].abs().max()
    assert float(spread) > 0.3  # the steps' values differ by more than the tolerance


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampled_steps": 0}, f"sampled_steps must be between 1 and .* {STEPS} .*got 0"),
        ({"sampled_steps": STEPS + 1}, f"sampled_steps must be between.*got {STEPS + 1}"),
        ({"target_steps": 0}, "target_steps must be between.*got 0"),
        ({"target_steps": STEPS + 1}, f"target_steps must be between.*got {STEPS + 1}"),
        ({"actor_steps": STEPS + 1}, f"actor_steps must be between.*got {STEPS + 1}"),
        ({"critic_reduction": "max"}, "critic_reduction must be"),
        ({"loss_function": "huber"}, "loss_function must be"),
        ({"discount_mode": "step"}, "discount_mode must be"),
        ({"reduction": "max"}, "reduction must be"),
        ({"temperature": -1.0}, "temperature must be a finite number >= 0"),
    ],
)
def test_bad_options_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_networks_that_do_not_fit_raise() -> None:
    actor, critic = make_denoising_q_networks()
    with pytest.raises(TypeError, match="ChainActor"):
        DiffSACLoss(critic, critic, temperature=0.1)
    _, categorical = make_off_policy_networks(support=CategoricalSupport(-1, 1, 5))
    with pytest.raises(ValueError, match="HLGauss"):
        DiffSACLoss(actor, categorical, temperature=0.1)
    _, _, normalizer = make_networks()
    critic.module.normalizer = normalizer
    with pytest.raises(ValueError, match=r"delay_qvalue=True.*running statistics"):
        DiffSACLoss(actor, critic, temperature=0.1)


def test_squashed_entropy_needs_the_actors_squashing() -> None:
    critic = make_denoising_q_networks()[1]
    actor = TableChainActor(small_net(OBSERVATION, ACTION), action_dim=ACTION)
    DiffSACLoss(actor, critic, temperature=0.1, delay_qvalue=False)
    with pytest.raises(TypeError, match=r"squash_log_det\(latent\), which TableChainActor lacks"):
        DiffSACLoss(actor, critic, temperature=0.1, delay_qvalue=False, squashed_entropy=True)


@pytest.mark.parametrize("temperature", [0.3, FixedTemperature(0.3)])
def test_centred_entropies_need_a_target(temperature: Any) -> None:
    with pytest.raises(ValueError, match=r"LearnedTemperature.*got FixedTemperature"):
        build(temperature=temperature, center_entropy=True)


def test_replay_without_chains_or_with_other_chains_raises() -> None:
    loss = build()
    batch = transitions(loss)
    with pytest.raises(KeyError, match=r"latents.*return_chain=True"):
        loss(batch.exclude("latents"))
    batch["latents"] = batch["latents"][:, 1:]
    with pytest.raises(ValueError, match=rf"{STEPS - 1} denoising steps where {STEPS}"):
        loss(batch)


def test_latents_are_all_that_replay_must_keep_of_a_chain() -> None:
    loss = build(sampled_steps=STEPS, check_chains="off")
    batch = transitions(loss)
    torch.manual_seed(2)
    expected = loss(batch)
    torch.manual_seed(2)
    out = loss(batch.exclude("log_prob", "log_ratio", "kernel_mean", "kernel_std", "action"))
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt:FutureWarning")
@pytest.mark.parametrize("number", [1, 2])
def test_drawing_steps_and_noise_compiles(number: int) -> None:
    torch._dynamo.reset()
    # The second case has what the trainer has.
    names = ("squashed_entropy", "fresh_chains", "center_entropy")
    loss = build(
        sampled_steps=number,
        target_steps=2,
        temperature=LearnedTemperature(0.3, target_entropy=-8.0),
        **dict.fromkeys(names, number == 2),
    )
    batch = transitions(loss, 200)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.manual_seed(3)
    expected = loss(batch)
    torch.manual_seed(3)
    out = compiled(batch)
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value)
    assert not torch.allclose(compiled(batch)["loss_qvalue"], expected["loss_qvalue"])
