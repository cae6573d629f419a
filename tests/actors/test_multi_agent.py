"""Several agents that share a policy: entries ``[*B, agents, F]`` below one key."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import (
    ActorKeys,
    CriticConfig,
    DenoisingStepActor,
    NetworkConfig,
    RandomChains,
    build_denoising_actor,
    build_diffsac_networks,
    build_diffwpo_networks,
    build_dime_networks,
    build_gaussian_ppo_networks,
    build_gaussian_sac_networks,
    build_gaussian_wpo_networks,
    build_ppo_networks,
)

AGENTS, STEPS = 3, 4
OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")
KEYS = ActorKeys(
    action=ACTION,
    latents=("agents", "latents"),
    log_prob=("agents", "log_prob"),
    latent=("agents", "latent"),
    next_latent=("agents", "next_latent"),
    step=("agents", "step"),
)
CHAINS = [
    build_ppo_networks,
    build_diffsac_networks,
    build_diffwpo_networks,
    build_dime_networks,
    build_gaussian_wpo_networks,
]
MakeEnv = Callable[..., EnvBase]


@pytest.fixture(params=[(), (5,)])
def env(make_env: MakeEnv, request: pytest.FixtureRequest) -> EnvBase:
    low, high = torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.3])
    return make_env(
        action_spec=Bounded(low.expand(AGENTS, 2), high.expand(AGENTS, 2)),
        observations={OBSERVATION: Unbounded((AGENTS, 4))},
        action_key=ACTION,
        batch_size=request.param,
    )


@pytest.mark.parametrize("builder", CHAINS)
def test_networks_of_denoising_chains(env: EnvBase, builder: Callable) -> None:
    built = builder(env, observation_keys=[OBSERVATION], keys=KEYS)
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        rollout = env.rollout(3, built.actor)
    batch = (*env.batch_size, 3, AGENTS)
    assert rollout[ACTION].shape == (*batch, 2)
    assert (rollout[ACTION].flatten(0, -2).std(0) > torch.tensor([0.1, 0.005])).all()

    rollout[KEYS.latent] = rollout[KEYS.next_latent] = torch.randn(*batch, 2)
    rollout[KEYS.step] = torch.zeros(*batch, 1, dtype=torch.long)
    values = built.critic.eval()(rollout)[built.critic.out_keys[0]]
    members = () if builder is build_ppo_networks else (2,)
    assert values.shape == (*batch, *members, 1)


@pytest.mark.parametrize("builder", [build_gaussian_ppo_networks, build_gaussian_sac_networks])
def test_networks_of_gaussian_policies(env: EnvBase, builder: Callable) -> None:
    built = builder(env, observation_keys=[OBSERVATION], action_key=ACTION)
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        rollout = env.rollout(3, built.actor)
    batch = (*env.batch_size, 3, AGENTS)
    assert rollout[ACTION].shape == (*batch, 2)
    critics = built.critic if builder is build_gaussian_sac_networks else [built.critic]
    for critic in critics:
        assert critic(rollout)[critic.out_keys[0]].shape == (*batch, 1)


def test_agents_act_as_rows_of_a_batch(env: EnvBase) -> None:
    actor = build_denoising_actor(
        env,
        observation_keys=[OBSERVATION],
        keys=KEYS,
        return_chain=True,
        noise_key=("agents", "noise"),
    )
    with torch.no_grad():
        actor.score_network.net[-1].weight.normal_()
    batch = (*env.batch_size, AGENTS)
    data = TensorDict(
        {
            "agents": {
                "observation": torch.randn(*batch, 4),
                "noise": torch.randn(*batch, STEPS + 1, 2),
            }
        },
        env.batch_size,
    )
    flat = data["agents"].reshape(-1) if data["agents"].batch_dims else data["agents"]
    rows = TensorDict(
        {"agents": {name: flat[name].flatten(0, len(batch) - 1) for name in flat.keys()}}  # noqa: SIM118
    )
    with set_exploration_type(ExplorationType.RANDOM):
        together, alone = actor(data), actor(rows)
    for key in (ACTION, KEYS.latents, KEYS.log_prob):
        expected = alone[key].reshape(together[key].shape)
        torch.testing.assert_close(together[key], expected)
    assert together[KEYS.latents].shape == (*batch, STEPS + 1, 2)


def test_step_actor_and_random_chains(env: EnvBase) -> None:
    actor = build_denoising_actor(env, observation_keys=[OBSERVATION], keys=KEYS)
    rollout = env.rollout(3, RandomChains(actor))
    batch = (*env.batch_size, 3, AGENTS)
    assert rollout[ACTION].shape == (*batch, 2)
    assert rollout[KEYS.latents].shape == (*batch, STEPS + 1, 2)
    rollout[KEYS.latent] = rollout[KEYS.latents][..., 0, :]
    rollout[KEYS.step] = torch.ones(*batch, 1, dtype=torch.long)
    out = DenoisingStepActor(actor)(rollout)
    assert out[KEYS.next_latent].shape == (*batch, 2)
    assert out[KEYS.log_prob].shape == (*batch, 1)


def test_shared_statistics_count_every_agent(env: EnvBase) -> None:
    built = build_ppo_networks(
        env,
        observation_keys=[OBSERVATION],
        keys=KEYS,
        network=NetworkConfig(normalize_observations=True),
    )
    observation = 3 + torch.randn(10, AGENTS, 4)
    built.normalizer.update(observation)
    assert built.normalizer.count == 10 * AGENTS
    torch.testing.assert_close(built.normalizer.mean.float(), observation.mean((0, 1)))
    assert built.normalizer(observation).flatten(0, 1).mean(0).abs().max() < 1e-5


def test_batch_normalisation_takes_agents_as_rows(env: EnvBase) -> None:
    critic = build_dime_networks(
        env, observation_keys=[OBSERVATION], keys=KEYS, critic=CriticConfig(hidden=(8,), atoms=None)
    ).critic
    observation, action = torch.randn(6, AGENTS, 4), torch.rand(6, AGENTS, 2)
    data = TensorDict({"agents": {"observation": observation, "action": action}}, [6])
    rows = TensorDict(
        {"agents": {"observation": observation.flatten(0, 1), "action": action.flatten(0, 1)}}
    )
    together = critic(data)["state_action_value"]
    assert together.shape == (6, AGENTS, 2, 1)
    torch.testing.assert_close(together.flatten(0, 1), critic(rows)["state_action_value"])


def test_agents_with_other_bounds_are_refused(make_env: MakeEnv) -> None:
    high = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    env = make_env(
        action_spec=Bounded(-high, high),
        observations={OBSERVATION: Unbounded((2, 4))},
        action_key=ACTION,
    )
    with pytest.raises(ValueError, match=r"the same bounds for all agents.*ActionScaling"):
        build_dime_networks(env, observation_keys=[OBSERVATION], keys=KEYS)


def test_observations_must_have_the_layout_of_the_actions(make_env: MakeEnv) -> None:
    env = make_env(action_spec=Bounded(-1.0, 1.0, (AGENTS, 2)), action_key=ACTION)
    with pytest.raises(ValueError, match=r"\[\*agents, A\] with observations \[\*agents, S\], got"):
        build_dime_networks(env, keys=KEYS)


def with_two_actions(env: EnvBase) -> EnvBase:
    """The environment with one more action beside its own, ``arm``."""
    one = env.full_action_spec["arm"]
    env.full_action_spec = Composite({"arm": one, "hand": one.clone()}, shape=env.batch_size)
    return env


@pytest.mark.parametrize("builder", [*CHAINS, build_denoising_actor])
def test_several_actions_are_listed_and_one_can_be_chosen(
    make_env: MakeEnv, builder: Callable
) -> None:
    env = with_two_actions(make_env(action_key="arm"))
    with pytest.raises(
        ValueError, match=r"action_key='action' is not an action .*\['arm', 'hand'\].*ActorKeys"
    ):
        builder(env)
    built = builder(env, keys=ActorKeys(action="hand"))
    actor = built if builder is build_denoising_actor else built.actor
    assert actor.out_keys[0] == "hand"


@pytest.mark.parametrize("builder", [build_gaussian_ppo_networks, build_gaussian_sac_networks])
def test_gaussian_policies_choose_an_action_too(make_env: MakeEnv, builder: Callable) -> None:
    env = with_two_actions(make_env(action_key="arm"))
    with pytest.raises(ValueError, match=r"\['arm', 'hand'\]"):
        builder(env)
    assert "arm" in builder(env, action_key="arm").actor.out_keys


def test_a_group_of_actions_is_no_action(env: EnvBase) -> None:
    with pytest.raises(ValueError, match=r"action_key='agents' is not an action .*action"):
        build_gaussian_ppo_networks(env, observation_keys=[OBSERVATION], action_key="agents")
