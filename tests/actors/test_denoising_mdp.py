"""The denoising MDP: steps against the kernels by hand, given noise, chains for given actions."""

import copy
import math

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Normal
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from diffpolicy.actors import (
    ActionChains,
    ActionSquash,
    ActorKeys,
    DenoisingActor,
    DenoisingMDP,
    GaussianChainActor,
)
from diffpolicy.networks import ScoreNetwork
from diffpolicy.sde import DenoisingProcess

STEPS, ACTION, OBSERVATION = 3, 2, 4
LOW, HIGH = torch.tensor([-2.0, 0.1]), torch.tensor([-1.0, 0.3])


def make_actor(keys: ActorKeys | None = None) -> DenoisingActor:
    torch.manual_seed(0)
    process = DenoisingProcess(ACTION, STEPS, step_size=0.2, step_size_per_step=True)
    score = ScoreNetwork(ACTION, OBSERVATION, STEPS, hidden_sizes=(8,), init_std=0.5)
    with torch.no_grad():
        process.raw_step_size.add_(0.5 * torch.randn(STEPS, 1))
    process.set_noise_scale(0.8)
    return DenoisingActor(process, score, ActionSquash(LOW, HIGH), keys=keys, return_chain=True)


def either_actor(gaussian: bool) -> DenoisingActor | GaussianChainActor:
    if not gaussian:
        return make_actor()
    squash = ActionSquash(LOW, HIGH)
    return GaussianChainActor(torch.nn.Linear(OBSERVATION, ACTION), squash, return_chain=True)


def transitions(actor: DenoisingActor | GaussianChainActor, *batch: int) -> TensorDictBase:
    out = actor(TensorDict({"observation": torch.randn(*batch, OBSERVATION)}, batch)).detach()
    return out.set("next", TensorDict({"observation": torch.randn(*batch, OBSERVATION)}, batch))


def log_ratio_by_hand(actor: DenoisingActor, row: TensorDictBase) -> Tensor:
    denoising, noising = actor.denoising_kernel(row), actor.noising_kernel(row)
    forward = Normal(*denoising).log_prob(row["next_latent"]).sum(-1, keepdim=True)
    return forward - Normal(*noising).log_prob(row["latent"]).sum(-1, keepdim=True)


def test_rows_and_their_log_ratios() -> None:
    actor = make_actor()
    mdp, batch = DenoisingMDP(actor), transitions(actor, 5)
    rows = mdp.rows(batch)
    assert rows.batch_size == (5, STEPS)
    torch.testing.assert_close(mdp.log_ratio(rows), batch["log_ratio"])
    torch.testing.assert_close(mdp.log_ratio(rows), log_ratio_by_hand(actor, rows))
    assert mdp.is_last(rows).squeeze(-1).tolist() == [[False, False, True]] * 5


@pytest.mark.parametrize("gaussian", [False, True])
def test_kernels_of_a_rollout_are_those_that_acting_writes(gaussian: bool) -> None:
    actor = either_actor(gaussian)
    mdp, written = DenoisingMDP(actor), transitions(actor, 5, 2)
    per_step = actor.keys.per_step
    assert mdp.with_kernels(written) is written

    added = mdp.with_kernels(written.exclude(*per_step))

    for key in per_step:
        torch.testing.assert_close(added[key], written[key])
    torch.testing.assert_close(mdp.rows(added)["next_latent"], mdp.rows(written)["next_latent"])
    with pytest.raises(KeyError, match="with_kernels"):
        mdp.rows(written.exclude(*per_step))


@pytest.mark.parametrize("gaussian", [False, True])
def test_an_actor_writes_the_latents_only_when_asked(gaussian: bool) -> None:
    full = either_actor(gaussian)
    short = copy.deepcopy(full)
    short.return_chain = "latents"
    given = TensorDict({"observation": torch.randn(5, OBSERVATION)}, [5])
    torch.manual_seed(1)
    every = full(given.copy())
    torch.manual_seed(1)
    latents = short(given.copy())
    assert set(latents.keys()) == {"observation", "action", "latents"}
    torch.testing.assert_close(latents["action"], every["action"])


def test_rows_at_chosen_steps_are_those_rows() -> None:
    actor = make_actor()
    mdp, batch = DenoisingMDP(actor), transitions(actor, 5)
    step = mdp.draw_steps(batch.batch_size, 2)
    assert step.shape == (2, 5)
    assert bool((step[0] != step[1]).all())
    rows, every = mdp.rows_at(batch, step), mdp.rows(batch)
    for m in range(2):
        for b in range(5):
            assert torch.equal(rows["next_latent"][m, b], every["next_latent"][b, step[m, b]])


@pytest.mark.parametrize("number", [1, 2, STEPS])
def test_steps_are_drawn_uniformly_without_replacement(number: int) -> None:
    torch.manual_seed(0)
    step = DenoisingMDP(make_actor()).draw_steps((6000,), number)
    shares = torch.bincount(step.flatten(), minlength=STEPS) / step.numel()
    assert bool(((shares - 1 / STEPS).abs() < 0.03).all())
    assert all(len(set(column)) == number for column in step.T.tolist())


def test_a_proposal_is_the_mean_plus_the_given_noise() -> None:
    actor = make_actor()
    mdp = DenoisingMDP(actor)
    rows = mdp.rows(transitions(actor, 5)).reshape(-1)
    noise = torch.randn(len(rows), ACTION)
    proposed = mdp.propose(rows, noise)
    mean, std = actor.denoising_kernel(rows)
    torch.testing.assert_close(proposed["next_latent"], mean + std * noise)
    torch.testing.assert_close(proposed["log_ratio"], log_ratio_by_hand(actor, proposed))
    before = rows.clone()
    mdp.propose(rows)
    assert set(rows.keys(True, True)) == set(before.keys(True, True))


def test_the_following_state_stays_in_the_chain_or_starts_the_next() -> None:
    actor = make_actor()
    mdp, batch = DenoisingMDP(actor), transitions(actor, 6)
    step = torch.tensor([[0, 1, 2, 0, 1, 2]])
    rows = mdp.rows_at(batch, step, carry_keys=[("next", "observation")])
    noise = torch.randn(1, 6, ACTION)
    following = mdp.following(rows, noise)
    for i, n in enumerate(step[0].tolist()):
        state = following[0, i]
        if n < STEPS - 1:
            assert torch.equal(state["latent"], batch["latents"][i, n + 1])
            assert torch.equal(state["observation"], batch["observation"][i])
            assert int(state["step"]) == n + 1
        else:
            prior = actor.process.prior_std * noise[0, i]
            torch.testing.assert_close(state["latent"], prior)
            assert torch.equal(state["observation"], batch["next", "observation"][i])
            assert int(state["step"]) == 0


def test_simulation_ends_with_the_chain() -> None:
    actor = make_actor()
    mdp = DenoisingMDP(actor)
    state = TensorDict({"observation": torch.randn(STEPS, OBSERVATION)}, [STEPS])
    state["latent"], state["step"] = torch.randn(STEPS, ACTION), torch.arange(STEPS).unsqueeze(-1)
    noise = torch.randn(STEPS, STEPS, ACTION)
    path = mdp.simulate(state, STEPS, noise)
    assert len(path) == STEPS
    for row in range(STEPS):
        latent, taken = state["latent"][row], 0
        for step in range(row, STEPS):
            single = state[row].clone().set("latent", latent)
            single["step"] = torch.tensor([step])
            mean, std = actor.denoising_kernel(single)
            latent = mean + std * noise[taken, row]
            torch.testing.assert_close(path[taken].rows["next_latent"][row], latent)
            assert bool(path[taken].taken[row])
            taken += 1
        for later in path[taken:]:
            assert not bool(later.taken[row])
            torch.testing.assert_close(later.rows["next_latent"][row], latent)
            assert int(later.rows["step"][row]) == STEPS - 1


def test_a_chain_from_noise_is_the_actors() -> None:
    actor = make_actor()
    batch = TensorDict({"observation": torch.randn(5, OBSERVATION)}, [5])
    noise = torch.randn(5, STEPS + 1, ACTION)
    latents = DenoisingMDP(actor).chain_from(batch, noise)
    expected = actor.sample_chain(batch["observation"], noise).latents
    torch.testing.assert_close(latents, expected)
    assert set(batch.keys()) == {"observation"}


def test_single_steps_average_to_the_bound_of_the_chain() -> None:
    actor = make_actor()
    actor.return_entropy_bound = True
    batch = transitions(actor, 7)
    mdp = DenoisingMDP(actor)
    estimate = mdp.entropy_bound(mdp.rows(batch)).mean(-2)
    torch.testing.assert_close(estimate, batch["entropy_bound"], rtol=1e-4, atol=1e-4)


def test_the_bound_of_a_gaussian_is_the_entropy_of_its_action() -> None:
    """One step from a fixed start: ``-log pi(a)`` of the squashed Gaussian."""
    torch.manual_seed(0)
    actor = GaussianChainActor(
        torch.nn.Linear(OBSERVATION, ACTION), ActionSquash(LOW, HIGH), return_chain=True
    )
    batch = transitions(actor, 9)
    mdp = DenoisingMDP(actor)
    last = batch["latents"][..., -1, :]
    mean = actor.mean_network(batch["observation"])
    log_prob = Normal(mean, actor.std).log_prob(last) - (1 - last.tanh() ** 2).log()
    estimate = mdp.entropy_bound(mdp.rows(batch)).squeeze(-2)
    torch.testing.assert_close(estimate, -log_prob.sum(-1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_chains_lead_to_the_given_actions_from_the_given_noise() -> None:
    actor = make_actor()
    mdp = DenoisingMDP(actor)
    action = LOW + (HIGH - LOW) * torch.rand(200, ACTION)
    observation = TensorDict({"observation": torch.randn(200, OBSERVATION)}, [200])
    noise = torch.randn(200, STEPS, ACTION)
    latents = mdp.chains_for(observation, action, noise)
    assert not latents.requires_grad
    torch.testing.assert_close(actor.squash(latents[:, -1]), action, rtol=0, atol=1e-6)
    for n in range(STEPS):
        row = TensorDict({"next_latent": latents[:, n + 1]}, [200])
        mean, std = actor.noising_kernel(row.set("step", torch.full((200, 1), n)))
        torch.testing.assert_close(latents[:, n], mean + std * noise[:, n])
    assert set(observation.keys()) == {"observation"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_actions_at_the_bounds_are_exact(dtype: torch.dtype) -> None:
    squash = ActionSquash(LOW, HIGH).to(dtype)
    for bound in (squash.low, squash.high):
        latent = squash.inverse(bound)
        assert bool(latent.isfinite().all())
        assert torch.equal(squash(latent), bound)
    bounds = torch.stack((LOW, HIGH))
    observation = TensorDict({"observation": torch.randn(2, OBSERVATION)}, [2])
    latents = DenoisingMDP(make_actor()).chains_for(observation, bounds)
    assert bool(latents.isfinite().all())
    assert torch.equal(make_actor().squash(latents[:, -1]), bounds)
    with pytest.raises(ValueError, match=r"action must be within \[-2.0.*got values.*clip"):
        squash.inverse(squash.high + 0.1)


def test_chains_that_do_not_lead_to_their_actions_are_found() -> None:
    actor = make_actor()
    mdp, batch = DenoisingMDP(actor), transitions(actor, 6)
    assert not bool(mdp.misled(batch).any())
    batch["action"][2] += 0.05 * (HIGH - LOW)
    batch["latents"][4] = 0.0
    assert mdp.misled(batch).flatten().nonzero().flatten().tolist() == [2, 4]


@pytest.mark.parametrize("only_missing", [False, True])
def test_replay_buffers_get_chains(only_missing: bool) -> None:
    keys = ActorKeys(action=("agent", "move"), latents=("agent", "chain"))
    actor = make_actor(keys)
    data = transitions(actor, 20)
    data["agent", "move"][10:] = LOW + (HIGH - LOW) * torch.rand(10, ACTION)
    data["index"] = torch.arange(20)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(20),
        batch_size=200,
        transform=ActionChains(actor, only_missing=only_missing),
    )
    buffer.extend(data)
    sample = buffer.sample()
    mdp = DenoisingMDP(actor)
    assert not bool(mdp.misled(sample).any())
    kept = (sample["agent", "chain"] == data["agent", "chain"][sample["index"]]).all(-1).all(-1)
    own = sample["index"] < 10
    assert bool(own.any())
    assert torch.equal(kept, own if only_missing else torch.zeros_like(own))
    assert mdp.misled(data).flatten().tolist() == [False] * 10 + [True] * 10


def test_what_the_actor_lacks_is_named() -> None:
    with pytest.raises(TypeError, match=r"members of diffpolicy.actors.ChainActor.*got Linear"):
        DenoisingMDP(torch.nn.Linear(1, 1))
    actor = make_actor()
    del actor.squash
    batch = TensorDict({"observation": torch.randn(1, OBSERVATION)}, [1])
    with pytest.raises(TypeError, match=r"chains_for needs an actor with a member squash"):
        DenoisingMDP(actor).chains_for(batch, torch.zeros(1, ACTION))


def test_prior_entropy_is_the_mean_of_its_negative_log_density() -> None:
    actor = make_actor()
    torch.manual_seed(0)
    log_prob = actor.prior_log_prob(actor.sample_prior((200_000,)))
    assert actor.prior_entropy == pytest.approx(-float(log_prob.mean()), abs=0.02)
    assert actor.prior_entropy == pytest.approx(ACTION * 0.5 * math.log(2 * math.pi * math.e))
