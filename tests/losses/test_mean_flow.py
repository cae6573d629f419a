"""Mean flows: their steps, their target, and one step of them beside one of a rectified flow."""

import pytest
import torch
from loss_builders import bandit, gradients, make_off_policy_networks, make_rollout
from rowwise import rowwise_draws
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from diffpolicy.actors import ActionClip, DenoisingActor
from diffpolicy.networks import IntervalEmbedding, ScoreNetwork, StepEmbedding
from diffpolicy.sde import MeanFlowProcess, RectifiedFlowProcess, rollout_last
from objectives import DenoisingRegressionLoss, FPMDLoss
from objectives.regression import Evenly, MeanFlowTarget, NoiseTarget, ReplayedActions

POINT, STEPS = 0.4, 3


class Constant(nn.Module):
    """A critic that values all actions alike."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.zeros(()))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.height + 0 * (observation.sum(-1, keepdim=True) + action.sum(-1, keepdim=True))


def constant_critic() -> TensorDictModule:
    return TensorDictModule(Constant(), ["observation", "action"], ["state_action_value"])


@pytest.mark.parametrize("steps", [1, 3])
def test_any_number_of_steps_of_an_exact_mean_velocity_ends_in_the_same_place(steps: int) -> None:
    """Normal noise flows along known lines to a Gaussian of actions."""
    mean, std = 0.4, 0.3
    process = MeanFlowProcess(1, 4)
    process.set_denoising_steps(steps)

    def place(t: Tensor, latent: Tensor, start: Tensor) -> Tensor:
        def width(time: Tensor) -> Tensor:
            return ((time * std).square() + (1 - time).square()).sqrt()

        return t * mean + width(t) / width(start) * (latent - start * mean)

    def exact(latent: Tensor, times: Tensor) -> Tensor:
        start, end = times
        return (place(end, latent, start) - latent) / (end - start)

    noise = torch.randn(50, steps + 1, 1)
    last = rollout_last(process, exact, noise)
    torch.testing.assert_close(last, mean + std * noise[..., 0, :], atol=1e-5, rtol=1e-4)


def plain_error(
    network: nn.Module, observation: Tensor, clean: Tensor, noise: Tensor, times: list[float]
) -> Tensor:
    """``|u - stopgrad(v + (t' - t) du/dt)|^2 / A`` of one row, du/dt by central differences."""
    start, end = sorted(times)
    velocity, latent, h = clean - noise, start * clean + (1 - start) * noise, 1e-5

    def mean_velocity(t: float) -> Tensor:
        times = torch.tensor([t, end], dtype=torch.float64)
        output: Tensor = network(latent + (t - start) * velocity, times, observation)
        return output

    rate = (mean_velocity(start + h) - mean_velocity(start - h)) / (2 * h)
    target = (velocity + (end - start) * rate).detach()
    return (mean_velocity(start) - target).square().mean()


def test_the_loss_with_a_constant_critic_is_a_plain_mean_flow() -> None:
    actor, _ = make_off_policy_networks(process=MeanFlowProcess)
    batch = make_rollout(actor, (5,)).double()
    loss = FPMDLoss(actor, constant_critic(), temperature=0.3, num_actions=4, spread=0.0).double()
    SoftUpdate(loss, tau=0.1)
    draws, network = rowwise_draws(loss, batch), loss.actor_network.score_network
    draws["times"] = draws["times"].sin().square()
    errors = []
    for row in range(5):
        observation, given = batch["observation"][row], draws[row]
        rows = TensorDict({"observation": observation.expand(4, -1)}, [4])
        with torch.no_grad():
            own = loss.actor_network.sample_action(rows, noise=given["candidate_noise"])
        clean = loss.actor_network.squash.inverse(own)
        for k in range(4):
            noise, times = given["noise"][0, k], given["times"][0, k].tolist()
            errors.append(plain_error(network, observation, clean[k], noise, times))
    found, described = loss.actor_loss(batch, draws=draws)
    expected, last = torch.stack(errors).mean(), network.net[-1].bias
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        gradients(loss, found)["actor_network_params.score_network.net.2.bias"],
        torch.autograd.grad(expected, last)[0],
    )
    # All actions count alike.
    alike = torch.full((5, 1), 4.0, dtype=torch.float64)
    torch.testing.assert_close(described["weight_entropy"].exp(), alike)


def cloned(mean: bool) -> DenoisingActor:
    """A flow that was fitted to the single action ``POINT``."""
    torch.manual_seed(0)
    process = (MeanFlowProcess if mean else RectifiedFlowProcess)(1, STEPS)
    embedding = IntervalEmbedding(4, 8, 4) if mean else StepEmbedding(STEPS, 4, 8, 4)
    network = ScoreNetwork(1, 1, STEPS, hidden_sizes=(32, 32), embedding=embedding)
    actor = DenoisingActor(process, network, ActionClip(-torch.ones(1), torch.ones(1)))
    target = MeanFlowTarget() if mean else NoiseTarget()
    loss = DenoisingRegressionLoss(
        actor,
        constant_critic(),
        proposal=ReplayedActions(),
        weight=Evenly(),
        target=target,
        delay_qvalue=False,
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(120):
        batch = bandit(128)
        batch["action"] = torch.full_like(batch["action"], POINT)
        value, _ = loss.actor_loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return actor


def test_one_step_of_both_flows_agrees_on_a_point() -> None:
    observation, noise = bandit(200)["observation"], torch.randn(200, 2, 1)
    found = []
    for actor in (cloned(mean=True), cloned(mean=False)):
        actor.denoising_steps = 1
        found.append(actor.sample_latent(observation, noise).detach())
    # Without training the distances are those of the noise, 1.08.
    assert float((found[0] - found[1]).square().mean().sqrt()) < 0.2
    for latent in found:
        assert float(latent.mean()) == pytest.approx(POINT, abs=0.05)
        assert float((latent - POINT).square().mean().sqrt()) < 0.2
