"""The Gaussian policy as a chain of one step, and the networks of Gaussian WPO."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.distributions import Normal
from torchrl.data import Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import (
    ActionSquash,
    ActorKeys,
    ChainActor,
    CriticConfig,
    DenoisingStepActor,
    GaussianChainActor,
    NetworkConfig,
    build_gaussian_wpo_networks,
    chain_rows,
)
from diffpolicy.actors.exploration import is_deterministic
from diffpolicy.networks import RunningNorm
from diffpolicy.sde import gaussian_log_prob, log_ratio

RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
SQUASH = ActionSquash(torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.3]))
MakeEnv = Callable[..., EnvBase]
Data = Callable[..., TensorDict]


def make_gaussian(**options: Any) -> GaussianChainActor:
    """Actor for 3 observations and 2 actions with different stds, in float64."""
    actor = GaussianChainActor(nn.Linear(3, 2), SQUASH, return_chain=True, **options).double()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([0.3, 0.8]).log())
    return actor


@pytest.mark.parametrize("batch", [(), (5,), (3, 4)])
def test_shapes_for_any_batch(make_data: Data, batch: tuple[int, ...]) -> None:
    actor = make_gaussian()
    assert isinstance(actor, ChainActor)
    assert actor.denoising_steps == 1
    out = actor(make_data(*batch))
    shapes = {key: tuple(value.shape[len(batch) :]) for key, value in out.items()}
    assert out.batch_size == batch
    assert shapes == {
        "observation": (3,),
        "action": (2,),
        "latents": (2, 2),
        "log_prob": (1, 1),
        "log_ratio": (1, 1),
        "kernel_mean": (1, 2),
        "kernel_std": (1, 2),
    }
    prior = actor.sample_prior(batch)
    assert prior.shape == (*batch, 2)
    assert not prior.any()


def test_without_chain_only_the_action_is_written(make_data: Data) -> None:
    actor = GaussianChainActor(nn.Linear(3, 2), SQUASH).double()
    assert actor.out_keys == ["action"]
    assert set(actor(make_data(4)).keys()) == {"observation", "action"}


def test_the_chain_is_a_squashed_gaussian_whose_log_ratio_is_its_log_density(
    make_data: Data,
) -> None:
    actor, data = make_gaussian(), make_data(50)
    with set_exploration_type(RANDOM):
        out = actor(data)
    first, last = out["latents"].unbind(-2)
    assert not first.any()
    torch.testing.assert_close(out["action"], SQUASH(last))
    mean = actor.mean_network(data["observation"])
    std = torch.tensor([0.3, 0.8]).double()
    density = Normal(mean, std).log_prob(last).sum(-1, keepdim=True)
    torch.testing.assert_close(out["log_prob"].squeeze(-2), density)
    torch.testing.assert_close(out["log_ratio"].squeeze(-2), density)
    torch.testing.assert_close(out["kernel_mean"].squeeze(-2), mean)
    torch.testing.assert_close(out["kernel_std"].squeeze(-2), std.expand(50, 2))


def test_given_noise_decides_the_action_and_is_not_read_without_noise(make_data: Data) -> None:
    actor, data = make_gaussian(noise_key="noise"), make_data(5)
    assert actor.in_keys == ["observation", "noise"]
    data["noise"] = torch.randn(5, 2).double()
    before = torch.get_rng_state()
    with set_exploration_type(RANDOM):
        out = actor(data.clone())
    expected = actor.mean_network(data["observation"]) + actor.std * data["noise"]
    torch.testing.assert_close(out["latents"][:, -1], expected)
    with set_exploration_type(DETERMINISTIC):
        out = actor(data.exclude("noise"))
    torch.testing.assert_close(out["latents"][:, -1], actor.mean_network(data["observation"]))
    assert torch.equal(torch.get_rng_state(), before)


def test_kernels_of_rows_agree_with_the_chain(make_data: Data) -> None:
    actor = make_gaussian()
    rows = chain_rows(actor(make_data(6)), denoising_steps=1).reshape(-1)
    denoising, noising = actor.denoising_kernel(rows), actor.noising_kernel(rows)
    torch.testing.assert_close(denoising.mean, rows["kernel_mean"])
    torch.testing.assert_close(denoising.std, rows["kernel_std"])
    ratio = log_ratio(rows["latent"], rows["next_latent"], denoising, noising)
    torch.testing.assert_close(ratio, rows["log_ratio"])
    torch.testing.assert_close(ratio, gaussian_log_prob(rows["next_latent"], denoising))
    # The kernel does not look at where the chain was.
    rows["latent"] = torch.randn_like(rows["latent"])
    torch.testing.assert_close(actor.denoising_kernel(rows).mean, denoising.mean)


def test_the_step_actor_takes_it(make_data: Data) -> None:
    actor, data = make_gaussian(), make_data(7)
    data["latent"], data["step"] = actor.sample_prior((7,)), torch.zeros(7, 1, dtype=torch.long)
    with set_exploration_type(RANDOM):
        out = DenoisingStepActor(actor)(data)
    torch.testing.assert_close(out["log_ratio"], out["log_prob"])


@pytest.mark.parametrize("mode", [mode for mode in ExplorationType if mode != RANDOM])
def test_deterministic_modes_take_the_mean(make_data: Data, mode: ExplorationType) -> None:
    actor, data = make_gaussian(), make_data(5)
    with set_exploration_type(mode):
        assert is_deterministic()
        out = actor(data)
    mean = actor.mean_network(data["observation"])
    torch.testing.assert_close(out["latents"][:, 1], mean)
    torch.testing.assert_close(out["action"], SQUASH(mean))


def test_random_actions_have_the_std_of_the_kernel() -> None:
    actor = make_gaussian()
    data = TensorDict({"observation": torch.zeros(20_000, 3).double()}, [20_000])
    with set_exploration_type(RANDOM), torch.no_grad():
        assert not is_deterministic()
        last = actor(data)["latents"][:, 1]
    # Four standard errors of a standard deviation.
    assert last.std(0).tolist() == pytest.approx([0.3, 0.8], rel=4 / math.sqrt(2 * 20_000))


def test_every_key_may_be_nested() -> None:
    keys = ActorKeys(**{field.name: ("agent", field.name) for field in fields(ActorKeys)})
    observations = [("agent", "speed"), "position"]
    actor = make_gaussian(in_keys=observations, keys=keys)
    data = TensorDict(
        {"agent": {"speed": torch.randn(4, 2)}, "position": torch.randn(4, 1)}, [4]
    ).double()
    out = actor(data)
    assert set(out["agent"].keys()) == {"speed", "action", *(key[1] for key in keys.chain)}
    rows = chain_rows(out, observation_keys=observations, keys=keys)
    assert actor.noising_kernel(rows).mean.shape == (4, 1, 2)
    mean = actor.mean_network(torch.cat((data["agent", "speed"], data["position"]), -1))
    torch.testing.assert_close(actor.denoising_kernel(rows).mean.squeeze(1), mean)


def test_gradients_reach_the_mean_and_the_std(make_data: Data) -> None:
    actor = make_gaussian()
    with set_exploration_type(RANDOM):
        out = actor(make_data(5))
    out["action"].sum().backward()
    assert all(bool(p.grad.abs().min() > 0) for p in actor.parameters())


def test_resetting_restores_the_initial_std() -> None:
    actor = make_gaussian(initial_std=0.5)
    actor.reset_parameters()
    assert actor.std.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("initial_std", [0.0, -1.0, math.inf, math.nan])
def test_an_initial_std_that_is_none_is_refused(initial_std: float) -> None:
    with pytest.raises(ValueError, match=rf"initial_std must be .*, got {initial_std}"):
        make_gaussian(initial_std=initial_std)


def test_a_missing_observation_is_named() -> None:
    with pytest.raises(KeyError, match=r"'observation' is missing .* \['speed'\]"):
        make_gaussian()(TensorDict({"speed": torch.zeros(2, 3)}, [2]))


@pytest.mark.parametrize("bins", [None, 21])
def test_networks_have_the_sizes_of_the_environment(make_env: MakeEnv, bins: int | None) -> None:
    observations = {("sensors", "speed"): Unbounded((4,)), "position": Unbounded((3,))}
    env = make_env(observations=observations, batch_size=(5,))
    actor, critic, normalizer = build_gaussian_wpo_networks(
        env,
        network=NetworkConfig(actor_hidden=(8,)),
        critic=CriticConfig((9,), 3, None, bins, (-1.0, 1.0), hl_gauss=bins is not None),
        observation_keys=list(observations),
        initial_std=0.5,
    )
    rollout = env.rollout(4, actor)
    assert rollout["latents"].shape == (5, 4, 2, 2)
    assert actor.std.tolist() == pytest.approx([0.5, 0.5])
    assert isinstance(normalizer, RunningNorm)
    assert normalizer.mean.shape == (7,)
    statistics = {id(m) for net in (actor, critic) for m in net.modules() if m is normalizer}
    assert statistics == {id(normalizer)}
    assert sum(m is normalizer for m in critic.modules()) == 1
    assert critic.in_keys == [*observations, "next_latent", "step"]
    rows = critic(chain_rows(rollout, observation_keys=list(observations)))
    assert rows["state_action_value"].shape == (5, 4, 1, 3, 1)
    if bins is not None:
        assert rows["state_action_value_logits"].shape == (5, 4, 1, 3, bins)


def test_the_policy_network_follows_the_recipe_of_gaussian_ppo(make_env: MakeEnv) -> None:
    network = NetworkConfig(actor_hidden=(16, 16), normalize_observations=False)
    actor, _, normalizer = build_gaussian_wpo_networks(make_env(), network=network)
    assert normalizer is None
    first, second, last = (m for m in actor.mean_network.modules() if isinstance(m, nn.Linear))
    gain = nn.init.calculate_gain("tanh")
    weight = second.weight
    torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(16), rtol=0, atol=1e-5)
    product = last.weight @ last.weight.T
    torch.testing.assert_close(product, 1e-4 * torch.eye(2), rtol=0, atol=1e-8)
    assert not any(bool(layer.bias.any()) for layer in (first, second, last))


def test_the_embedding_of_steps_is_that_of_the_critic(make_env: MakeEnv) -> None:
    sizes = [
        [
            sum(p.numel() for p in part.parameters())
            for part in build_gaussian_wpo_networks(
                make_env(), network=NetworkConfig(step_embedding=embedding)
            )[:2]
        ]
        for embedding in ((32, 32, 16), (8, 8, 4))
    ]
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] > sizes[1][1]


def test_options_of_other_critics_are_refused(make_env: MakeEnv) -> None:
    with pytest.raises(ValueError, match=r"critic_hidden=\(9,\) is for the value functions of PPO"):
        build_gaussian_wpo_networks(make_env(), network=NetworkConfig(critic_hidden=(9,)))
    with pytest.raises(ValueError, match=r"scalar .*HL-Gauss"):
        build_gaussian_wpo_networks(make_env(), critic=CriticConfig(normalization=None))
