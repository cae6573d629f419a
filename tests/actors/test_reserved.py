"""Observations may not have names that components write, and the list of those is whole."""

from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial

import pytest
import torch
from tensordict import NestedKey, TensorDict
from torchrl.data import Unbounded
from torchrl.envs import EnvBase

import objectives
from collectors import make_collector, make_env, make_replay_buffer
from diffpolicy.actors import (
    RESERVED_KEYS,
    ActorKeys,
    build_denoising_actor,
    build_diffsac_networks,
    build_diffwpo_networks,
    build_dime_networks,
    build_gaussian_ppo_networks,
    build_gaussian_sac_networks,
    build_gaussian_wpo_networks,
    build_ppo_networks,
)

BUILDERS = [
    build_denoising_actor,
    build_diffsac_networks,
    build_diffwpo_networks,
    build_dime_networks,
    build_gaussian_ppo_networks,
    build_gaussian_sac_networks,
    build_gaussian_wpo_networks,
    build_ppo_networks,
]
ACTOR_NAMES = set(ActorKeys().all)
TAKEN = RESERVED_KEYS | ACTOR_NAMES
MakeEnv = Callable[..., EnvBase]


def root(key: NestedKey) -> str:
    return key if isinstance(key, str) else key[0]


def names_of_losses() -> Iterator[tuple[str, str]]:
    for name in objectives.__all__:
        keys = getattr(getattr(objectives, name), "default_keys", None)
        if keys is not None:
            yield from ((name, root(key)) for key in astuple(keys()))


@pytest.mark.parametrize(("loss", "name"), list(names_of_losses()))
def test_names_of_losses_are_reserved(loss: str, name: str) -> None:
    assert name in TAKEN


def test_every_loss_was_asked() -> None:
    losses = {name for name in objectives.__all__ if name.endswith("Loss")}
    assert {loss for loss, _ in names_of_losses()} >= losses >= {"DIMELoss", "DiffPPOLoss"}


def test_names_do_not_overlap() -> None:
    assert not RESERVED_KEYS & ACTOR_NAMES


@pytest.mark.parametrize("builder", BUILDERS)
def test_everything_that_collecting_and_acting_write_is_reserved(builder: Callable) -> None:
    env_fn = partial(make_env, "Pendulum-v1", num_envs=2, seed=0)
    env = env_fn()
    built = builder(env)
    actor, critics = (built, []) if builder is build_denoising_actor else (built.actor, built[1])
    collector = make_collector(env_fn, actor, frames_per_batch=8, seed=0)
    batch = next(iter(collector))
    collector.shutdown()
    env.close()
    written = set(batch.keys()) - {"observation"}
    for critic in critics if isinstance(critics, torch.nn.ModuleList) else [critics]:
        written |= {root(key) for key in getattr(critic, "out_keys", [])}
    assert written >= {"action", "next", "collector"}
    assert written | set(batch["next"].keys()) - {"observation"} <= TAKEN


def test_what_replay_adds_is_reserved() -> None:
    rows = TensorDict({"observation": torch.zeros(4, 3)}, [4])
    buffer = make_replay_buffer(8, batch_size=2, seed=0)
    buffer.extend(rows)
    assert set(buffer.sample().keys()) - {"observation"} <= TAKEN
    assert {"td_error", "priority_weight", "index"} <= TAKEN


# Environments of TorchRL refuse the rest themselves.
@pytest.mark.parametrize("name", sorted(TAKEN - {"done", "reward", "terminated"}))
def test_builders_refuse_observations_with_these_names(make_env: MakeEnv, name: str) -> None:
    observations = {"observation": Unbounded((3,)), name: Unbounded((1,))}
    env = make_env(observations=observations, action_key=("agent", "action"))
    keys = ActorKeys(action=("agent", "action"))
    if name == "action":
        # Renamed, as the error recommends.
        actor = build_denoising_actor(env, observation_keys=["observation", name], keys=keys)
        assert actor.observation_keys == ["observation", name]
        return
    with pytest.raises(ValueError, match=rf"observation_keys has '{name}'.*Rename it.*ActorKeys"):
        build_denoising_actor(env, observation_keys=["observation", name], keys=keys)


@pytest.mark.parametrize("builder", BUILDERS)
def test_every_builder_refuses(make_env: MakeEnv, builder: Callable) -> None:
    env = make_env(observations={"observation": Unbounded((3,)), "latents": Unbounded((1,))})
    with pytest.raises(ValueError, match="observation_keys has 'latents'"):
        builder(env, observation_keys=["observation", "latents"])


def test_other_names_of_an_actor_set_its_own_names_free(make_env: MakeEnv) -> None:
    env = make_env(observations={"observation": Unbounded((3,)), "step": Unbounded((1,))})
    networks = build_ppo_networks(
        env, observation_keys=["observation", "step"], keys=ActorKeys(step="denoising_step")
    )
    assert networks.critic.in_keys == ["observation", "step", "latent", "denoising_step"]


def test_nested_names_are_free(make_env: MakeEnv) -> None:
    names = [("observation", "action"), ("observation", "step"), ("observation", "reward")]
    env = make_env(observations={name: Unbounded((2,)) for name in names})
    assert build_denoising_actor(env, observation_keys=names).observation_keys == names
    below = ("collector", "position")
    env = make_env(observations={below: Unbounded((2,))})
    with pytest.raises(ValueError, match="which collides with 'collector'"):
        build_denoising_actor(env, observation_keys=[below])
