"""Diffusion Q-learning against its formulas, written row by row."""

import torch
from loss_builders import ACTION, STEPS, gradients, make_off_policy_networks, make_rollout
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from diffpolicy.sde import VariancePreservingProcess
from objectives import DiffusionQLLoss

GAMMA, ETA = 0.9, 0.7


def build(**options: object) -> DiffusionQLLoss:
    torch.manual_seed(0)
    actor, critic = make_off_policy_networks(process=VariancePreservingProcess)
    loss = DiffusionQLLoss(actor, critic, eta=ETA, **options)
    loss.make_value_estimator(gamma=GAMMA).double()
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():  # targets that are not the networks
        for params in (loss.target_actor_network_params, loss.target_qvalue_network_params):
            for key, value in params.items(True, True):
                if "weight" in key[-1]:
                    value.add_(0.1 * torch.randn_like(value))
    return loss


def transitions(loss: DiffusionQLLoss, rows: int = 5) -> TensorDictBase:
    return make_rollout(loss.actor_network, (rows,), dtype=torch.float64)


def chain(loss: DiffusionQLLoss, observation: Tensor, noise: Tensor) -> Tensor:
    """The action of one DDPM chain, from its published posterior, for one observation."""
    process = loss.actor_network.process
    latent = noise[0]
    for step in range(STEPS):
        here, after = process.levels[step], process.levels[step + 1]
        beta = 1 - here / after
        eps = loss.actor_network.score_network(
            latent[None], torch.tensor([step]), observation[None]
        )[0]
        clean = ((latent - (1 - here).sqrt() * eps) / here.sqrt()).clamp(-1, 1)
        mean = after.sqrt() * beta / (1 - here) * clean
        mean = mean + (1 - beta).sqrt() * (1 - after) / (1 - here) * latent
        latent = mean + (beta * (1 - after) / (1 - here)).sqrt() * noise[step + 1]
    squash = loss.actor_network.squash
    return squash.low + (latent.clamp(-1, 1) + 1) / 2 * (squash.high - squash.low)


def values(loss: DiffusionQLLoss, observation: Tensor, action: Tensor) -> Tensor:
    """``[E]`` of one action."""
    inputs = TensorDict({"observation": observation, "action": action})
    return loss.qvalue_network(inputs)["state_action_value"].flatten()


def test_the_actor_loss_and_its_gradient_are_the_formula() -> None:
    loss = build(sampled_steps=2)
    batch = transitions(loss)
    draws = loss.draw(batch)
    judges = (draws["judge"] % 2).flatten().tolist()
    assert set(judges) == {0, 1}
    cloning, valued = [], []
    for row, draw in zip(batch, draws, strict=True):
        squash = loss.actor_network.squash
        unit = 2 * (row["action"] - squash.low) / (squash.high - squash.low) - 1
        for k in range(2):
            step = draw["step"][k]
            level = loss.actor_network.process.levels[step]
            noise = draw["noise"][k]
            latent = level.sqrt() * unit + (1 - level).sqrt() * noise
            said = loss.actor_network.score_network(latent[None], step, row["observation"][None])[0]
            cloning.append((said - noise).square().mean())
        own = chain(loss, row["observation"], draw["chain_noise"])
        valued.append(values(loss, row["observation"], own))
    value = torch.stack(valued)
    size = torch.stack([v[1 - j].abs() for v, j in zip(value, judges, strict=True)]).mean()
    chosen = torch.stack([v[j] for v, j in zip(value, judges, strict=True)]).mean()
    expected = torch.stack(cloning).mean() - ETA * chosen / size.detach()
    found = loss(batch, draws=draws)["loss_actor"]
    torch.testing.assert_close(found, expected)
    wanted = gradients(loss, expected)
    for name, gradient in gradients(loss, found).items():
        assert name.startswith("actor_network_params.")
        torch.testing.assert_close(gradient, wanted[name])


def test_each_target_critic_takes_its_best_action_of_the_target_policy() -> None:
    loss = build(best_of=3)
    batch = transitions(loss)
    draws = loss.draw(batch)
    assert draws["next_noise"].shape == (5, 3, STEPS + 1, ACTION)
    total = []
    for row, draw in zip(batch, draws, strict=True):
        now, following = values(loss, row["observation"], row["action"]), row["next"]
        with torch.no_grad():
            with loss.target_actor_network_params.to_module(loss.actor_network):
                actions = [chain(loss, following["observation"], n) for n in draw["next_noise"]]
            with loss.target_qvalue_network_params.to_module(loss.qvalue_network):
                each = torch.stack([values(loss, following["observation"], a) for a in actions])
        bootstrap = each.amax(0).min() * (~following["terminated"])
        total.append((now - following["reward"] - GAMMA * bootstrap).square().sum())
    found = loss(batch, draws=draws)["loss_qvalue"]
    torch.testing.assert_close(found, torch.stack(total).mean())
