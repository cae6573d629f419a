"""Learning in seconds: known densities, against which policy, bound and critic are checked."""

import math

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from diffpolicy.actors import ActionSquash, DenoisingActor
from diffpolicy.networks import CategoricalSupport, QEnsemble, ScoreNetwork, StepEmbedding
from diffpolicy.sde import DenoisingProcess
from objectives import DIMELoss


def make_actor(
    dim: int, steps: int, *, prior_std: float, width: int = 32, learn: bool = True
) -> DenoisingActor:
    process = DenoisingProcess(
        dim,
        steps,
        prior_std=prior_std,
        schedule="cosine",
        step_size=0.1,
        learn_step_size=learn,
        learn_friction=learn,
        noising_step="same",
    )
    embedding = StepEmbedding(steps, 16, 16, 8)
    score = ScoreNetwork(dim, 1, steps, hidden_sizes=(width, width), embedding=embedding)
    return DenoisingActor(process, score, ActionSquash(-torch.ones(dim), torch.ones(dim)))


def states(rows: int) -> TensorDict:
    return TensorDict({"observation": torch.ones(rows, 1)}, [rows])


def bandit_batch(rows: int) -> TensorDictBase:
    """Uniform actions with reward ``-4 (a - 0.4)^2``; every transition ends its episode."""
    action = 2 * torch.rand(rows, 1) - 1
    following = states(rows)
    following["reward"] = -4 * (action - 0.4).square()
    following["terminated"] = torch.ones(rows, 1, dtype=torch.bool)
    return states(rows).set("action", action).set("next", following)


def test_bandit_policy_becomes_the_boltzmann_density() -> None:
    temperature = 1.0
    actor = make_actor(1, 8, prior_std=1.0)
    network = QEnsemble(
        1, 1, hidden_sizes=(32, 32), normalization="batch", support=CategoricalSupport(-9, 3, 41)
    )
    critic = TensorDictModule(
        network, ["observation", "action"], ["state_action_value", "state_action_value_logits"]
    )
    loss = DIMELoss(actor, critic, temperature=temperature)
    optimizer = torch.optim.Adam(loss.parameters(), 3e-3, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 500)
    for _ in range(500):
        out = loss(bandit_batch(128))
        optimizer.zero_grad()
        (out["loss_qvalue"] + out["loss_actor"]).backward()
        optimizer.step()
        schedule.step()

    grid = torch.linspace(-1, 1, 2001)
    reward = -4 * (grid - 0.4).square()
    weight = torch.exp(reward / temperature)
    normaliser = torch.trapezoid(weight, grid)
    mean = torch.trapezoid(weight * grid, grid) / normaliser
    std = (torch.trapezoid(weight * grid.square(), grid) / normaliser - mean**2).sqrt()
    loss.eval()
    with torch.no_grad():
        values = network(torch.ones(2001, 1), grid.unsqueeze(-1))[0].mean(-2).squeeze(-1)
        path = actor.sample_path(states(10_000))
    true_value = -4 * (path.action - 0.4).square()
    bound = (true_value / temperature - path.running_cost - path.terminal_cost).mean()
    critic_error = torch.trapezoid(weight * (values - reward).abs(), grid) / normaliser
    assert critic_error.item() < 0.3
    assert abs(path.action.mean() - mean).item() < 0.06
    assert abs(path.action.std() - std).item() < 0.06
    gap = (normaliser.log() - bound).item()
    error = 4 * path.running_cost.std().item() / 10_000**0.5
    assert -error < gap < 0.25


MODES = torch.tensor([[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5], [-0.5, -0.5]])
MODE_STD = 0.15


class FourModes(nn.Module):
    """The log density of a mixture of four Gaussians in the square, as a critic."""

    def forward(self, action: Tensor) -> Tensor:
        """Value ``[*B, 1]``."""
        square = (action.unsqueeze(-2) - MODES).square().sum(-1)
        return (-0.5 * square / MODE_STD**2).logsumexp(-1, keepdim=True)


def four_mode_gap(steps: int, *, learn: bool = True) -> tuple[float, Tensor]:
    """log Z - ELBO after training against the exact critic, and the share of each mode."""
    torch.manual_seed(0)
    actor = make_actor(2, steps, prior_std=1.5, learn=learn)
    critic = TensorDictModule(FourModes(), ["action"], ["state_action_value"])
    loss = DIMELoss(actor, critic, temperature=1.0)
    optimizer = torch.optim.Adam(actor.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 500)
    for _ in range(500):
        value, _ = loss.actor_loss(states(128))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        path = actor.sample_path(states(4000))
        bound = FourModes()(path.action) - path.running_cost - path.terminal_cost
    axis = torch.linspace(-1, 1, 401)
    density = FourModes()(torch.cartesian_prod(axis, axis)).exp().reshape(401, 401)
    normaliser = torch.trapezoid(torch.trapezoid(density, axis), axis)
    nearest = (path.action.unsqueeze(-2) - MODES).square().sum(-1).argmin(-1)
    shares = torch.bincount(nearest, minlength=4) / len(nearest)
    return math.log(normaliser) - bound.mean().item(), shares


@pytest.mark.slow
def test_four_modes_are_kept_and_the_bound_tightens_with_more_steps() -> None:
    gaps, shares = {}, {}
    for case in ((2, True), (8, True), (8, False)):
        gaps[case], shares[case] = four_mode_gap(case[0], learn=case[1])
    for case, share in shares.items():
        assert bool(((share - 0.25).abs() < 0.06).all()), case
    # Measured: 2.05, 1.52 and 1.75 nats.
    assert gaps[2, True] > gaps[8, True] + 0.3
    assert gaps[8, False] > gaps[8, True] + 0.1
    assert 0 < gaps[8, True] < 1.8
