"""Random actions with chains: the actions are uniform, the chains what noise makes of them."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import EnvBase

from diffpolicy.actors import (
    ActorKeys,
    DenoisingActor,
    ProcessConfig,
    RandomChains,
    build_diffsac_networks,
)

MakeEnv = Callable[..., EnvBase]
ROWS, STEPS = 20_000, 4
LOW, HIGH = torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.3])


@pytest.fixture
def actor(make_env: MakeEnv) -> DenoisingActor:
    """An actor for actions in [-2, 2] x [0.1, 0.3] with another step size for every step."""
    torch.manual_seed(0)
    process = ProcessConfig(step_size_per_step=True, prior_std=1.3)
    built = build_diffsac_networks(make_env(), denoising_steps=STEPS, process=process).actor
    with torch.no_grad():
        built.process.raw_step_size.add_(0.5 * torch.randn_like(built.process.raw_step_size))
    return built


def largest_gap(share: Tensor) -> float:
    """Kolmogorov's distance of columns ``[R, A]`` of probabilities from a uniform law."""
    rank = (torch.arange(len(share)) + 0.5) / len(share)
    return float((share.sort(0).values - rank.unsqueeze(-1)).abs().max())


# Chance exceeds it once in ten thousand times.
GAP = 2.2 / ROWS**0.5


def test_actions_are_uniform_between_their_bounds(actor: DenoisingActor) -> None:
    action = RandomChains(actor)(TensorDict(batch_size=[ROWS]))["action"]
    assert bool(((action >= LOW) & (action <= HIGH)).all())
    share = (action - LOW) / (HIGH - LOW)
    assert largest_gap(share) < GAP
    assert abs(float(torch.corrcoef(share.T)[0, 1])) < 0.03


def test_chains_lead_to_their_actions(actor: DenoisingActor) -> None:
    out = RandomChains(actor)(TensorDict(batch_size=[ROWS]))
    assert out["latents"].shape == (ROWS, STEPS + 1, 2)
    assert bool(out["latents"].isfinite().all())
    assert not out["latents"].requires_grad
    torch.testing.assert_close(actor.squash(out["latents"][:, -1]), out["action"])


def test_chains_are_noised_from_their_ends(actor: DenoisingActor) -> None:
    latents = RandomChains(actor)(TensorDict(batch_size=[ROWS]))["latents"]
    noises = []
    for step in range(STEPS):
        row = TensorDict(batch_size=[ROWS])
        row.set("next_latent", latents[:, step + 1]).set("step", torch.full((ROWS, 1), step))
        mean, std = actor.noising_kernel(row)
        noises.append(((latents[:, step] - mean) / std).detach())
        assert largest_gap(torch.special.ndtr(noises[-1])) < GAP
    # Noise tells nothing of other noise, nor of where it is added.
    together = torch.cat((*noises, latents[:, -1]), -1)
    correlation = torch.corrcoef(together.T)
    assert float((correlation - torch.eye(len(correlation))).abs().max()) < 0.03


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_batch_and_other_keys(make_env: MakeEnv, batch: tuple[int, ...]) -> None:
    keys = ActorKeys(
        action=("agent", "move"),
        latents=("agent", "chain"),
        next_latent=("row", "later"),
        step=("row", "n"),
    )
    env = make_env(action_key=("agent", "move"), batch_size=batch)
    chains = RandomChains(build_diffsac_networks(env, denoising_steps=STEPS, keys=keys).actor)
    assert chains.in_keys == ["observation"]
    assert chains.out_keys == [("agent", "move"), ("agent", "chain")]
    out = chains(TensorDict({"observation": torch.randn(*batch, 3)}, batch))
    assert set(out.keys(True, True)) == {"observation", *chains.out_keys}
    assert out["agent", "move"].shape == (*batch, 2)
    assert out["agent", "chain"].shape == (*batch, STEPS + 1, 2)
    rollout = env.rollout(3, chains)
    assert rollout["agent", "chain"].shape == (*batch, 3, STEPS + 1, 2)
