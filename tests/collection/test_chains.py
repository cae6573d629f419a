from functools import partial

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from collectors import flatten_chains, make_collector, make_env
from diffpolicy.actors import DenoisingActor, build_ppo_networks

ENVS, TIME, STEPS, ACTION = 3, 4, 5, 6


@pytest.fixture(scope="module")
def collected() -> tuple[TensorDictBase, int]:
    """One rollout with chains, and the number of policy calls it took."""
    env_fn = partial(make_env, "HalfCheetah-v5", num_envs=ENVS)
    env = env_fn()
    torch.manual_seed(0)
    actor = build_ppo_networks(env, denoising_steps=STEPS).actor
    env.close()
    calls: list[int] = []
    collector = make_collector(env_fn, actor, frames_per_batch=ENVS * TIME, seed=0)
    hook = actor.register_forward_hook(lambda *_: calls.append(1))
    rollout = next(iter(collector))
    hook.remove()
    collector.shutdown()
    return rollout, len(calls)


@pytest.fixture
def rollout(collected: tuple[TensorDictBase, int]) -> TensorDictBase:
    result = collected[0].clone()
    shape = (ENVS, TIME, STEPS, 1)
    result["advantage"] = torch.arange(ENVS * TIME * STEPS).view(shape).float()
    result["value_target"] = -result["advantage"]
    return result


def test_a_rollout_keeps_whole_chains_from_one_policy_call_each(
    collected: tuple[TensorDictBase, int],
) -> None:
    rollout, calls = collected
    assert calls == TIME
    assert rollout.shape == (ENVS, TIME)
    assert rollout["latents"].shape == (ENVS, TIME, STEPS + 1, ACTION)
    for key in ("log_prob", "log_ratio"):
        assert rollout[key].shape == (ENVS, TIME, STEPS, 1)
    for key in ("kernel_mean", "kernel_std"):
        assert rollout[key].shape == (ENVS, TIME, STEPS, ACTION)
    # the chain ends in the action the simulator was given
    torch.testing.assert_close(rollout["latents"][..., -1, :].tanh(), rollout["action"])


def test_one_row_for_each_denoising_step(rollout: TensorDictBase) -> None:
    rows = flatten_chains(rollout)
    assert rows.shape == (ENVS * TIME * STEPS,)
    assert rows["step"].dtype == torch.int64
    assert rows["step"].flatten().tolist() == list(range(STEPS)) * (ENVS * TIME)
    assert rows["advantage"].flatten().tolist() == list(range(ENVS * TIME * STEPS))
    assert torch.equal(rows["value_target"], -rows["advantage"])


def chains(rows: TensorDictBase, key: str) -> Tensor:
    return rows[key].view(ENVS, TIME, STEPS, -1)


def test_next_latents_are_the_latents_shifted_by_one(rollout: TensorDictBase) -> None:
    rows = flatten_chains(rollout)
    assert torch.equal(chains(rows, "latent"), rollout["latents"][..., :-1, :])
    assert torch.equal(chains(rows, "next_latent"), rollout["latents"][..., 1:, :])
    assert torch.equal(chains(rows, "latent")[..., 1:, :], chains(rows, "next_latent")[..., :-1, :])


def test_every_row_has_the_observation_its_chain_was_drawn_for(rollout: TensorDictBase) -> None:
    observations = chains(flatten_chains(rollout), "observation")
    for step in range(STEPS):
        assert torch.equal(observations[..., step, :], rollout["observation"])


def test_rows_reproduce_the_stored_log_probabilities(rollout: TensorDictBase) -> None:
    rows = flatten_chains(rollout)
    normal = torch.distributions.Normal(rows["kernel_mean"], rows["kernel_std"])
    expected = normal.log_prob(rows["next_latent"]).sum(-1, keepdim=True)
    torch.testing.assert_close(rows["log_prob"], expected, rtol=1e-4, atol=1e-3)


def test_chains_of_several_observation_keys(rollout: TensorDictBase) -> None:
    rollout["body", "speed"] = rollout["observation"] + 1
    rows = flatten_chains(rollout, observation_keys=["observation", ("body", "speed")])
    assert torch.equal(rows["body", "speed"], rows["observation"] + 1)


def test_a_rollout_without_chains_is_refused(rollout: TensorDictBase) -> None:
    with pytest.raises(KeyError, match=r"latents.*is missing.*return_chain=True"):
        flatten_chains(rollout.exclude("latents"))


def test_the_actor_is_the_denoising_actor() -> None:
    env = make_env("Pendulum-v1")
    actor = build_ppo_networks(env, denoising_steps=2).actor
    assert isinstance(actor, DenoisingActor)
    assert actor.in_keys == ["observation"]
