"""Values and gradients of the DIME loss against direct computations in float64."""

import math
from collections.abc import Iterator

import pytest
import torch
from loss_builders import gradients, make_off_policy_networks, make_rollout
from rowwise import path_noise, rowwise_draws
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from diffpolicy.networks import CategoricalSupport
from objectives import DIMELoss, LearnedTemperature

GAMMA, ALPHA = 0.9, 0.3


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(support: CategoricalSupport | None, normalization: str | None, **options) -> DIMELoss:
    actor, critic = make_off_policy_networks(support=support, normalization=normalization)
    temperature = LearnedTemperature(ALPHA, target_entropy=-8.0)
    loss = DIMELoss(actor, critic, temperature=temperature, **options)
    return loss.make_value_estimator(gamma=GAMMA)


def transitions(loss: DIMELoss, rows: int = 12) -> TensorDictBase:
    return make_rollout(loss.actor_network, (rows,), dtype=torch.float64)


def naive_path(loss: DIMELoss, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Action, run and term of one observation, density by density."""
    actor = loss.actor_network
    process = actor.process
    noise = path_noise(observation, process.denoising_steps, process.action_dim)
    eta, nu = process.step_sizes(), process.prior_std
    x = nu * noise[0]
    term = sum(-0.5 * (v / nu) ** 2 - nu.log() - 0.5 * math.log(2 * math.pi) for v in x)
    run = torch.tensor(0.0)

    def log_density(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (
            -((value - mean) ** 2) / (2 * variance) - 0.5 * (2 * math.pi * variance).log()
        ).sum()

    for n in range(process.denoising_steps):
        score = actor.score_network(x[None], torch.tensor([n]), observation[None])[0]
        mean = x + eta[n] * (-x / nu**2 + score)
        following = mean + (2 * eta[n]).sqrt() * noise[n + 1]
        run = run + log_density(following, mean, 2 * eta[n])
        run = run - log_density(x, following * (1 - eta[n] / nu**2), 2 * eta[n])
        x = following
    run = run - (1 - x.tanh() ** 2).log().sum()
    low, high = actor.squash.low, actor.squash.high
    return low + (x.tanh() + 1) / 2 * (high - low), run, term


def naive_paths(loss: DIMELoss, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = [naive_path(loss, row) for row in observation]
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def project(location: float, probability: Tensor, atoms: Tensor) -> Tensor:
    clipped = min(max(location, float(atoms[0])), float(atoms[-1]))
    return probability * (1 - (clipped - atoms).abs() / (atoms[1] - atoms[0])).clamp(min=0)


def naive_categorical_critic_loss(loss: DIMELoss, batch: TensorDictBase) -> Tensor:
    network, atoms = loss.qvalue_network.module, loss.value_support.atoms
    following = batch["next"]
    next_action, run, term = naive_paths(loss, following["observation"])
    _, logits = network(
        torch.cat((batch["observation"], following["observation"])),
        torch.cat((batch["action"], next_action.detach())),
    )
    rows = len(batch)
    q = logits.softmax(-1)
    total = torch.tensor(0.0)
    for row in range(rows):
        target = torch.zeros_like(atoms)
        for critic in range(2):
            for index, atom in enumerate(atoms):
                location = following["reward"][row] + (
                    1 - following["terminated"][row].double()
                ) * (GAMMA * (atom - ALPHA * (run[row] + term[row])))
                weight = q[rows + row, critic, index].detach() / 2
                target = target + project(location.item(), weight, atoms)
        for critic in range(2):
            p = q[row, critic]
            total = total - (target * p.log()).sum() + 0.005 * (p * p.log()).sum()
    return total / rows


def assert_gradients_equal(loss: DIMELoss, value: Tensor, expected: Tensor, prefix: str) -> None:
    actual, wanted = gradients(loss, value), gradients(loss, expected)
    names = [name for name in wanted if name.startswith(prefix)]
    assert names
    for name in names:
        torch.testing.assert_close(actual[name], wanted[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("normalization", ["batch", "layer", None])
def test_categorical_critic_loss_and_gradient(normalization: str | None) -> None:
    loss = build(CategoricalSupport(-3, 3, 7), normalization)
    batch = transitions(loss)
    assert bool(batch["next", "terminated"].any())
    value, _ = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))
    expected = naive_categorical_critic_loss(loss, batch)
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "qvalue_network_params.")


@pytest.mark.parametrize("reduction", ["mean", "min"])
def test_scalar_critic_loss_with_target_network(reduction: str) -> None:
    loss = build(None, "layer", delay_qvalue=True, critic_reduction=reduction)
    updater = SoftUpdate(loss, tau=0.3)
    with torch.no_grad():
        for parameter in loss.qvalue_network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    old = {k: v.clone() for k, v in loss.target_qvalue_network_params.items(True, True)}
    new = dict(loss.qvalue_network_params.items(True, True))
    updater.step()
    batch = transitions(loss)
    value, diagnostics = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))

    network = loss.qvalue_network.module
    following = batch["next"]
    next_action, run, term = naive_paths(loss, following["observation"])
    for key, target in loss.target_qvalue_network_params.items(True, True):
        if isinstance(new[key], torch.nn.Parameter):
            torch.testing.assert_close(target, 0.7 * old[key] + 0.3 * new[key])
    with torch.no_grad(), loss.target_qvalue_network_params.to_module(loss.qvalue_network):
        next_q = network(following["observation"], next_action).squeeze(-1)
    next_q = next_q.mean(-1) if reduction == "mean" else next_q.min(-1).values
    alive = 1 - following["terminated"].double().squeeze(-1)
    target = following["reward"].squeeze(-1) + alive * GAMMA * (next_q - ALPHA * (run + term))
    q = network(batch["observation"], batch["action"]).squeeze(-1)
    expected = (q - target.detach().unsqueeze(-1)).square().sum(-1).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "qvalue_network_params.")
    error = (q - target.unsqueeze(-1)).abs().max(-1).values.detach()
    torch.testing.assert_close(batch["td_error"], error)
    torch.testing.assert_close(diagnostics["target_value"], target.mean().detach())


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("categorical", [False, True])
def test_actor_and_temperature_losses_and_gradients(categorical: bool, checkpoint: bool) -> None:
    support = CategoricalSupport(-3, 3, 7) if categorical else None
    loss = build(support, "batch" if categorical else None, checkpoint_chain=checkpoint)
    batch = transitions(loss)
    loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))  # running statistics off their start
    value, entropies = loss.actor_loss(batch, draws=rowwise_draws(loss, batch))

    action, run, term = naive_paths(loss, batch["observation"])
    loss.qvalue_network.eval()
    out = loss.qvalue_network.module(batch["observation"], action)
    q = (out[0] if categorical else out).squeeze(-1).mean(-1)
    expected = (ALPHA * (run + term) - q).mean()
    torch.testing.assert_close(value, expected)
    assert_gradients_equal(loss, value, expected, "actor_network_params.")
    reached = gradients(loss, value)
    assert all(name.startswith("actor_network_params.") for name in reached)
    assert {"actor_network_params.process.raw_step_size"} <= set(reached)
    torch.testing.assert_close(entropies["entropy"].squeeze(-1), -run.detach())
    torch.testing.assert_close(entropies["entropy_bound"].squeeze(-1), -(run + term).detach())

    alpha = loss.alpha_loss(batch, entropies["entropy"])
    torch.testing.assert_close(alpha, -ALPHA * (run.mean().detach() - 8.0))
    (slope,) = torch.autograd.grad(alpha, loss.temperature.log_alpha)
    torch.testing.assert_close(slope, -ALPHA * (run.mean().detach() - 8.0))


def test_actor_gradient_equals_finite_differences() -> None:
    """Through the chain, the noising means and the step sizes; Q enters by the action only."""
    loss = build(CategoricalSupport(-3, 3, 7), "batch")
    batch = transitions(loss)
    value, _ = loss.actor_loss(batch, draws=rowwise_draws(loss, batch))
    named = dict(loss.named_parameters())
    analytic = gradients(loss, value)
    checked = [n for n in analytic if n.endswith(("raw_step_size", "raw_friction", "net.0.weight"))]
    assert len(checked) >= 3
    for name in checked:
        flat = named[name].data.view(-1)
        for index in range(min(3, len(flat))):
            values = []
            for shift in (1e-6, -2e-6):
                flat[index] += shift
                values.append(loss.actor_loss(batch, draws=rowwise_draws(loss, batch))[0].item())
            flat[index] += 1e-6
            difference = (values[0] - values[1]) / 2e-6
            assert analytic[name].view(-1)[index].item() == pytest.approx(
                difference, rel=1e-4, abs=1e-7
            ), name
