"""Builders: sizes from specs, shared statistics, acting in environments, refused specs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Unbounded
from torchrl.envs import EnvBase, GymEnv
from torchrl.envs.utils import ExplorationType, check_env_specs, set_exploration_type

from diffpolicy.actors import (
    ActorKeys,
    ChainActor,
    CriticConfig,
    DenoisingActor,
    NetworkConfig,
    ProcessConfig,
    build_denoising_actor,
    build_diffsac_networks,
    build_diffwpo_networks,
    build_dime_networks,
    build_gaussian_ppo_networks,
    build_gaussian_sac_networks,
    build_gaussian_wpo_networks,
    build_ppo_networks,
    chain_rows,
)
from diffpolicy.actors.build import on_policy
from diffpolicy.networks import BatchRenorm

RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
BUILDERS = [
    build_denoising_actor,
    build_ppo_networks,
    build_gaussian_ppo_networks,
    build_dime_networks,
    build_gaussian_sac_networks,
]
SEVERAL = {("sensors", "speed"): Unbounded((4,)), "position": Unbounded((3,))}
MakeEnv = Callable[..., EnvBase]


@pytest.mark.parametrize("batch_size", [(), (5,)])
@pytest.mark.parametrize("value_support", [None, (-10.0, 10.0, 21)])
def test_ppo_networks_have_the_sizes_of_the_environment(
    make_env: MakeEnv, batch_size: tuple[int, ...], value_support: tuple | None
) -> None:
    env = make_env(batch_size=batch_size)
    check_env_specs(env)
    network = NetworkConfig(actor_hidden=(8,), critic_hidden=(9,), value_support=value_support)

    actor, critic, normalizer = build_ppo_networks(env, denoising_steps=3, network=network)
    rollout = env.rollout(4, actor)

    assert isinstance(actor, ChainActor)
    assert rollout["latents"].shape == (*batch_size, 4, 4, 2)
    assert rollout["log_prob"].shape == (*batch_size, 4, 3, 1)
    assert [layer.weight.shape for layer in actor.score_network.net[::2]] == [
        (8, 3 + 2 + 16),
        (2, 8),
    ]
    assert normalizer.mean.shape == (3,)
    rows = critic(chain_rows(rollout))
    assert critic.in_keys == ["observation", "latent", "step"]
    assert rows["state_value"].shape == (*batch_size, 4, 3, 1)
    if value_support is not None:
        assert critic.out_keys == ["state_value", "state_value_logits"]
        assert rows["state_value_logits"].shape == (*batch_size, 4, 3, 21)


def test_the_gaussian_baseline_has_a_scalar_critic_only(make_env: MakeEnv) -> None:
    network = NetworkConfig(value_support=(-10.0, 10.0, 21))
    with pytest.raises(ValueError, match=r"value_support=\(-10\.0, 10\.0, 21\) .* scalar critic"):
        build_gaussian_ppo_networks(make_env(), network=network)


def test_ppo_networks_read_the_specs_once(
    make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = on_policy.read_sizes, []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return read(*args, **options)

    monkeypatch.setattr(on_policy, "read_sizes", counted)
    build_ppo_networks(make_env())
    assert len(calls) == 1


@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
@pytest.mark.parametrize("builder", BUILDERS)
def test_rollout_actions_are_members_of_the_action_spec(
    make_env: MakeEnv, builder: Callable, exploration: ExplorationType
) -> None:
    env = make_env(batch_size=(50,))
    built = builder(env)
    actor = built if builder is build_denoising_actor else built.actor
    with set_exploration_type(exploration), torch.no_grad():
        rollout = env.rollout(5, actor)
    assert rollout["action"].dtype == torch.float32
    assert env.full_action_spec["action"].is_in(rollout["action"][:, 0])
    for action in rollout["action"].unbind(1):
        assert env.full_action_spec["action"].is_in(action)
    if exploration is RANDOM:
        spread = rollout["action"].flatten(0, 1).std(0)
        assert (spread > torch.tensor([0.2, 0.01])).all()


@pytest.mark.parametrize("builder", BUILDERS)
def test_pendulum_rollout(builder: Callable) -> None:
    env = GymEnv("Pendulum-v1")
    env.set_seed(0)
    built = builder(env)
    actor = built if builder is build_denoising_actor else built.actor
    with set_exploration_type(RANDOM), torch.no_grad():
        rollout = env.rollout(20, actor)
    assert rollout.batch_size == (20,)
    assert rollout["action"].shape == (20, 1)
    assert (rollout["action"].abs() <= 2).all()
    assert rollout["action"].std() > 0.1
    assert rollout["next", "reward"].isfinite().all()
    env.close()


@pytest.mark.parametrize("builder", [build_ppo_networks, build_gaussian_ppo_networks])
def test_several_nested_observation_keys(make_env: MakeEnv, builder: Callable) -> None:
    env = make_env(observations=SEVERAL, batch_size=(5,))
    actor, critic, normalizer = builder(env, observation_keys=list(SEVERAL))
    assert actor.in_keys[:2] == list(SEVERAL)
    assert normalizer.mean.shape == (7,)
    rollout = env.rollout(3, actor)
    rows = rollout
    if builder is build_ppo_networks:
        rows = chain_rows(rollout, observation_keys=list(SEVERAL))
    assert critic(rows)["state_value"].shape == (*rows.batch_size, 1)


def test_nested_action_and_chain_keys(make_env: MakeEnv) -> None:
    env = make_env(action_key=("agent", "move"), batch_size=(5,))
    keys = ActorKeys(
        action=("agent", "move"),
        latents=("chain", "x"),
        latent=("row", "x"),
        next_latent=("row", "y"),
        step=("row", "n"),
    )
    actor, critic, _ = build_ppo_networks(env, keys=keys, denoising_steps=3)
    rollout = env.rollout(4, actor)
    assert rollout["agent", "move"].shape == (5, 4, 2)
    rows = critic(chain_rows(rollout, keys=keys))
    assert rows["state_value"].shape == (5, 4, 3, 1)


@pytest.mark.parametrize("builder", [build_ppo_networks, build_gaussian_ppo_networks])
def test_statistics_are_shared_by_actor_and_critic(make_env: MakeEnv, builder: Callable) -> None:
    env = make_env()
    actor, critic, normalizer = builder(env)

    for module in (actor, critic):
        assert any(submodule is normalizer for submodule in module.modules())
        buffers = {buffer.data_ptr() for buffer in module.buffers()}
        assert {buffer.data_ptr() for buffer in normalizer.buffers()} <= buffers

    data = TensorDict({"observation": torch.randn(6, 3)}, [6])
    data["latent"], data["step"] = torch.randn(6, 2), torch.zeros(6, 1, dtype=torch.int64)
    before = critic(data.copy())["state_value"]
    normalizer.update(10 + 5 * torch.randn(100, 3))
    assert (critic(data.copy())["state_value"] != before).all()


@pytest.mark.parametrize("builder", [build_ppo_networks, build_gaussian_ppo_networks])
def test_without_normalisation_there_are_no_statistics(
    make_env: MakeEnv, builder: Callable
) -> None:
    actor, _, normalizer = builder(make_env(), network=NetworkConfig(normalize_observations=False))
    assert normalizer is None
    assert "normalizer" not in " ".join(actor.state_dict())


def test_process_options_reach_the_process(make_env: MakeEnv) -> None:
    options = ProcessConfig(
        prior_std=2.5,
        schedule="cosine",
        step_size=0.1,
        learn_step_size=False,
        step_size_per_step=True,
        friction=0.5,
        noising_step="same",
    )
    actor = build_denoising_actor(make_env(), denoising_steps=6, process=options)
    assert isinstance(actor, DenoisingActor)
    assert actor.out_keys == ["action"]
    process = actor.process
    assert process.prior_std.item() == 2.5
    assert process.noising_step == "same"
    assert process.raw_step_size.shape == (6, 1)
    assert not process.raw_step_size.requires_grad
    assert process.raw_friction.requires_grad
    assert process.step_sizes()[0, 0].item() == pytest.approx(0.2, rel=1e-2)
    assert actor.score_network.latent_scale == 2.5


def test_policy_starts_with_the_prior_whatever_the_observation(make_env: MakeEnv) -> None:
    actor = build_denoising_actor(make_env())
    first, second = (TensorDict({"observation": torch.randn(9, 3)}, [9]) for _ in range(2))
    with set_exploration_type(RANDOM), torch.no_grad():
        torch.manual_seed(1)
        one = actor(first)["action"]
        torch.manual_seed(1)
        two = actor(second)["action"]
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_gaussian_networks_follow_the_recipe(make_env: MakeEnv) -> None:
    env = make_env(batch_size=(200,))
    actor, critic, _ = build_gaussian_ppo_networks(env)
    with set_exploration_type(RANDOM), torch.no_grad():
        rollout = env.rollout(2, actor)
    assert rollout["loc"].abs().max() < 0.2
    torch.testing.assert_close(
        rollout["scale"], rollout["scale"][:1, :1].expand_as(rollout["scale"])
    )
    distribution = actor.get_dist(rollout)
    inside = rollout["action"]
    torch.testing.assert_close(
        distribution.log_prob(inside), rollout["action_log_prob"], atol=1e-2, rtol=1e-2
    )
    assert critic(rollout)["state_value"].shape == (200, 2, 1)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Categorical(4), "action_spec must be a bounded continuous spec"),
        (Unbounded((2,)), "action_spec must be a bounded continuous spec .* got Unbounded"),
        (Bounded(-1.0, math.inf, (2,)), "action_spec must have finite bounds"),
        (Bounded(-1.0, 1.0, (2, 3)), r"action_spec must have shape \[A\]"),
    ],
)
def test_other_action_specs_are_refused(
    make_env: MakeEnv, builder: Callable, spec: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        builder(make_env(action_spec=spec))


@pytest.mark.parametrize("builder", BUILDERS)
def test_unknown_observation_key_lists_the_known_ones(make_env: MakeEnv, builder: Callable) -> None:
    with pytest.raises(ValueError, match=r"observation_keys has 'obs'.*'observation'"):
        builder(make_env(), observation_keys=["obs"])


@pytest.mark.parametrize("builder", BUILDERS)
def test_images_are_refused(make_env: MakeEnv, builder: Callable) -> None:
    env = make_env(observations={"pixels": Unbounded((3, 8, 8))})
    with pytest.raises(ValueError, match=r"'pixels' of shape \(3, 8, 8\); only vectors"):
        builder(env, observation_keys=["pixels"])


@pytest.mark.parametrize("builder", [build_ppo_networks, build_dime_networks])
@pytest.mark.parametrize("steps", [0, -1])
def test_too_few_denoising_steps_are_refused(
    make_env: MakeEnv, builder: Callable, steps: int
) -> None:
    with pytest.raises(ValueError, match=f"steps must be at least 1, got {steps}"):
        builder(make_env(), denoising_steps=steps)


@pytest.mark.parametrize("builder", [build_ppo_networks, build_dime_networks])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_activation": "relu"}, r"activation must be one of .*, got 'relu'"),
        ({"score_initialization": "zeros"}, "initialization must be 'torch' or 'lecun', got 'zer"),
        ({"step_embedding": (0, 4, 4)}, "every layer width must be at least 1"),
        ({"actor_hidden": (8, 0)}, "every layer width must be at least 1"),
    ],
)
def test_bad_network_options_are_refused(
    make_env: MakeEnv, builder: Callable, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        builder(make_env(), network=NetworkConfig(**options))


def test_embedding_and_latent_scale_reach_score_and_value_networks(make_env: MakeEnv) -> None:
    network = NetworkConfig(step_embedding=(5, 6, 7), scale_latent=False)
    actor, critic, _ = build_ppo_networks(make_env(), network=network)
    for module in (actor.score_network, critic.module.network):
        assert [layer.weight.shape for layer in module.embedding.net[::2]] == [(6, 10), (7, 6)]
        assert module.latent_scale == 1.0
    default, value, _ = build_ppo_networks(make_env(), process=ProcessConfig(prior_std=0.7))
    assert default.score_network.latent_scale == value.module.network.latent_scale == 0.7


def test_options_of_critics_reach_their_networks(make_env: MakeEnv) -> None:
    network = NetworkConfig(
        value_support=(-1.0, 3.0, 5),
        support_ends="centers",
        step_activation="gelu_tanh",
        normalize_observations=False,
    )
    value = build_ppo_networks(make_env(), network=network).critic.module.network
    assert value.support.ends == "centers"
    assert value.embedding.net[1].approximate == "tanh"

    network = NetworkConfig(step_activation="gelu_tanh", normalize_observations=False)
    critic = CriticConfig(atoms=5, value_range=(-1.0, 3.0), hl_gauss=True, support_ends="centers")
    q = build_diffsac_networks(make_env(), network=network, critic=critic).critic.module.network
    assert q.ensemble.support.limits[1].item() == pytest.approx(3.0)
    assert q.ensemble.support.edges[-1].item() == pytest.approx(3.5)
    assert q.embedding.net[1].approximate == "tanh"

    for builder, options in (
        (build_diffsac_networks, {"atoms": None}),
        (build_dime_networks, {"atoms": 21}),
    ):
        config = CriticConfig(eps_in_correction=False, hidden=(4,), **options)
        norms = [
            m
            for m in builder(make_env(), critic=config).critic.modules()
            if isinstance(m, BatchRenorm)
        ]
        assert len(norms) == 2
        assert not any(norm.eps_in_correction for norm in norms)


def test_noise_key_is_passed_on(make_env: MakeEnv) -> None:
    for builder in (
        build_denoising_actor,
        build_ppo_networks,
        build_diffsac_networks,
        build_diffwpo_networks,
        build_dime_networks,
        build_gaussian_wpo_networks,
    ):
        built = builder(make_env(), noise_key=("n", "z"))
        actor = built if builder is build_denoising_actor else built.actor
        assert actor.in_keys == ["observation", ("n", "z")]
