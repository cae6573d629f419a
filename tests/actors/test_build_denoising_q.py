"""Builders of actors and Q ensembles over the denoising MDP: sizes, keys, defaults, refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import NestedKey, TensorDict
from torch import nn
from torchrl.data import OneHot, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import (
    ActorCritic,
    ActorKeys,
    CriticConfig,
    NetworkConfig,
    ProcessConfig,
    build_diffsac_networks,
    build_diffwpo_networks,
    build_dime_networks,
    build_regression_networks,
    rows_at,
)
from diffpolicy.networks import BatchRenorm, DenoisingQEnsemble, RunningNorm
from objectives import DiffSACLoss, LearnedTemperature

MakeEnv = Callable[..., EnvBase]
Build = Callable[..., ActorCritic]
SEVERAL = {("sensors", "speed"): Unbounded((4,)), "position": Unbounded((3,))}
NESTED = ActorKeys(
    action=("agent", "move"),
    latents=("agent", "chain", "latents"),
    log_prob=("agent", "chain", "log_prob"),
    log_ratio=("agent", "chain", "log_ratio"),
    kernel_mean=("agent", "chain", "kernel_mean"),
    kernel_std=("agent", "chain", "kernel_std"),
    latent=("row", "latent"),
    next_latent=("row", "later"),
    step=("row", "n"),
)
BUILDERS = pytest.mark.parametrize("build", [build_diffsac_networks, build_diffwpo_networks])


def written(build: Build, keys: ActorKeys) -> tuple[NestedKey, ...]:
    """What of a chain the losses read: that of DiffSAC takes nothing but latents from replay."""
    return (keys.latents,) if build is build_diffsac_networks else keys.chain


def ensemble(networks: ActorCritic) -> DenoisingQEnsemble:
    (found,) = [m for m in networks.critic.modules() if isinstance(m, DenoisingQEnsemble)]
    return found


def sampled(env: EnvBase, networks: ActorCritic, steps: int = 5) -> TensorDict:
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        return env.rollout(steps, networks.actor)


@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize("bins", [None, 21])
@BUILDERS
def test_networks_have_the_sizes_of_the_environment(
    make_env: MakeEnv, build: Build, batch: tuple[int, ...], bins: int | None
) -> None:
    env = make_env(batch_size=batch)
    head = {"atoms": bins, "hl_gauss": bins is not None, "value_range": (-3.0, 4.0)}
    critic = CriticConfig(hidden=(9, 10), ensemble_size=3, normalization=None, **head)
    networks = build(env, denoising_steps=3, critic=critic)
    assert networks.actor.denoising_steps == 3
    assert networks.actor.out_keys == ["action", *written(build, ActorKeys())]
    assert networks.critic.in_keys == ["observation", "next_latent", "step"]
    logits = [] if bins is None else ["state_action_value_logits"]
    assert networks.critic.out_keys == ["state_action_value", *logits]

    data = sampled(env, networks)
    assert data["latents"].shape == (*batch, 5, 4, 2)
    step = torch.randint(3, (2, *batch, 5))
    rows = rows_at(
        data,
        step,
        observation_keys=["observation"],
        keys=ActorKeys(),
        denoising_steps=3,
        carry_keys=[],
    )
    out = networks.critic(rows)
    assert out["state_action_value"].shape == (2, *batch, 5, 3, 1)
    if bins is not None:
        assert out["state_action_value_logits"].shape == (2, *batch, 5, 3, 21)
        edges = ensemble(networks).ensemble.support.edges
        assert (float(edges[0]), float(edges[-1])) == (-3, 4)


@BUILDERS
def test_keys_may_be_renamed_and_nested(make_env: MakeEnv, build: Build) -> None:
    env = make_env(action_key=("agent", "move"), observations=SEVERAL, batch_size=(6,))
    names = list(SEVERAL)
    networks = build(env, observation_keys=names, keys=NESTED, denoising_steps=3)
    assert networks.actor.in_keys == names
    assert networks.actor.out_keys == [NESTED.action, *written(build, NESTED)]
    assert networks.critic.in_keys == [*names, NESTED.next_latent, NESTED.step]
    networks.critic.eval()
    data = sampled(env, networks)
    assert data[NESTED.latents].shape == (6, 5, 4, 2)
    rows = data.select(*names)
    rows[NESTED.next_latent] = data[NESTED.latents][..., 1, :]
    rows[NESTED.step] = torch.zeros(6, 5, 1, dtype=torch.long)
    value = networks.critic(rows.clone())["state_action_value"]
    for key in (*names, NESTED.next_latent, NESTED.step):
        changed = rows.clone().set(key, rows[key] + 1)
        assert bool((networks.critic(changed)["state_action_value"] != value).all()), key


@BUILDERS
def test_a_loss_reaches_every_parameter(make_env: MakeEnv, build: Build) -> None:
    env = make_env(action_key=("agent", "move"), batch_size=(20,))
    networks = build(env, keys=NESTED, denoising_steps=3)
    with torch.no_grad():  # the last layer must not be almost zero for gradients in the others
        networks.actor.score_network.net[-1].weight.normal_()
    loss = DiffSACLoss(
        networks.actor,
        networks.critic,
        temperature=LearnedTemperature(0.5, target_entropy=-8.0),
        sampled_steps=3,
        delay_qvalue=False,
        squashed_entropy=True,
        fresh_chains=True,
        center_entropy=True,
    )
    out = loss(sampled(env, networks).reshape(-1))
    (out["loss_qvalue"] + out["loss_actor"] + out["loss_alpha"]).backward()
    for name, parameter in loss.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).any()), name


def test_defaults_of_diffsac(make_env: MakeEnv) -> None:
    actor, critic, normalizer = networks = build_diffsac_networks(make_env())
    assert actor.denoising_steps == 8
    assert normalizer is None
    assert not any(isinstance(m, RunningNorm | BatchRenorm) for m in critic.modules())
    assert actor.process.raw_friction.requires_grad
    assert actor.process.raw_step_size.shape[0] == 1
    value = critic(rows_of_zeros(7))["state_action_value"]
    assert value.shape == (7, 2, 1)
    assert ensemble(networks).latent_scale == ProcessConfig().prior_std


def test_defaults_of_diffwpo(make_env: MakeEnv) -> None:
    actor, critic, normalizer = build_diffwpo_networks(make_env())
    assert actor.denoising_steps == 4
    assert actor.process.raw_step_size.shape[0] == 4
    assert not actor.process.raw_friction.requires_grad
    assert normalizer is not None
    for module in (actor, critic):
        assert any(submodule is normalizer for submodule in module.modules())
    before = critic(rows_of_zeros(7))["state_action_value"]
    normalizer.update(10 + 5 * torch.randn(100, 3))
    assert bool((critic(rows_of_zeros(7))["state_action_value"] != before).all())


def rows_of_zeros(rows: int) -> TensorDict:
    step = torch.zeros(rows, 1, dtype=torch.long)
    entries = {"observation": torch.zeros(rows, 3), "next_latent": torch.zeros(rows, 2)}
    return TensorDict({**entries, "step": step}, [rows])


@BUILDERS
def test_options_reach_networks_and_process(make_env: MakeEnv, build: Build) -> None:
    networks = build(
        make_env(),
        denoising_steps=5,
        process=ProcessConfig(prior_std=0.7, step_size_per_step=True, learn_step_size=False),
        network=NetworkConfig(actor_hidden=(11,), step_embedding=(6, 5, 4)),
        critic=CriticConfig(hidden=(9,), ensemble_size=4, atoms=None, warmup_steps=12),
    )
    process, network = networks.actor.process, ensemble(networks)
    assert float(process.prior_std) == pytest.approx(0.7)
    assert network.latent_scale == 0.7
    assert process.raw_step_size.shape[0] == 5
    assert not process.raw_step_size.requires_grad
    # Observation, embedded step, latents twice.
    norms = [module for module in network.modules() if isinstance(module, BatchRenorm)]
    assert [norm.running_mean.shape for norm in norms] == [(4, 3 + 4 + 2 * 2), (4, 9)]
    assert {norm.warmup_steps for norm in norms} == {12}
    widths = [m.out_features for m in networks.actor.score_network.net if isinstance(m, nn.Linear)]
    assert widths == [11, 2]
    # Each network learns an embedding of its own.
    theirs = {id(parameter) for parameter in networks.actor.parameters()}
    assert not theirs & {id(parameter) for parameter in networks.critic.parameters()}


@BUILDERS
def test_the_deterministic_action_follows_the_kernel_means(make_env: MakeEnv, build: Build) -> None:
    actor = build(make_env(), denoising_steps=3).actor
    with torch.no_grad():
        actor.score_network.net[-1].weight.normal_()
    data = TensorDict({"observation": torch.randn(6, 3)}, [6])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        latents = actor(data)["latents"]
    for step in range(3):
        row = data.select("observation").set("latent", latents[:, step])
        mean, _ = actor.denoising_kernel(row.set("step", torch.full((6, 1), step)))
        torch.testing.assert_close(latents[:, step + 1], mean)


@BUILDERS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic": CriticConfig()}, r"scalar \(atoms=None\) or HL-Gauss .* got atoms=101"),
        ({"critic": CriticConfig(atoms=1, hl_gauss=True)}, "bins must be at least 2, got 1"),
        ({"critic": CriticConfig(atoms=None, hidden=(0,))}, "every layer width must be at least 1"),
        ({"network": NetworkConfig(critic_hidden=(8, 8))}, "is for the value functions of PPO"),
        (
            {"network": NetworkConfig(value_support=(-1.0, 1.0, 21))},
            "is for the value functions of PPO",
        ),
        ({"observation_keys": ["speed"]}, "speed"),
    ],
)
def test_what_cannot_be_built_is_refused(
    make_env: MakeEnv, build: Build, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(make_env(), **options)


@BUILDERS
def test_discrete_actions_are_refused(make_env: MakeEnv, build: Build) -> None:
    with pytest.raises(ValueError, match="continuous actions"):
        build(make_env(action_spec=OneHot(3)))


def test_hl_gauss_critics_are_not_dimes(make_env: MakeEnv) -> None:
    critic = CriticConfig(normalization="layer", hl_gauss=True)
    with pytest.raises(ValueError, match=r"hl_gauss=True is for critics that are fitted to number"):
        build_dime_networks(make_env(), critic=critic)


def test_hl_gauss_critics_of_actions(make_env: MakeEnv) -> None:
    head = {"atoms": 5, "value_range": (-1.0, 1.0), "hl_gauss": True}
    critic = CriticConfig((8,), normalization="layer", **head)
    networks = build_regression_networks(make_env(), critic=critic)
    out = networks.critic(make_env().fake_tensordict())
    assert out["state_action_value_logits"].shape[-2:] == (2, 5)
    assert out["state_action_value"].shape[-2:] == (2, 1)
