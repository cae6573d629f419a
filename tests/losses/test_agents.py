"""Transitions of several agents in TorchRL's layout, for the losses that learn from replay."""

from typing import Any

import pytest
import torch
from loss_builders import make_denoising_q_networks, make_networks, make_off_policy_networks
from rowwise import rowwise_draws
from tensordict import TensorDict, TensorDictBase, assert_close
from torchrl.objectives import LossModule

from diffpolicy.actors import ActorKeys
from objectives import DenoisingGAE, DiffSACLoss, DiffWPOLoss, DIMELoss, FixedTemperature
from objectives.agents import per_agent

BATCH, AGENTS = 4, 3
ALL = pytest.mark.parametrize("kind", [DIMELoss, DiffSACLoss, DiffWPOLoss])
GROUP = ActorKeys(
    **{
        name: ("agents", name)
        for name in ("action", "latents", "log_prob", "log_ratio", "kernel_mean", "kernel_std")
    }
)


def build(kind: type, **options: Any) -> LossModule:
    torch.manual_seed(0)
    make = make_off_policy_networks if kind is DIMELoss else make_denoising_q_networks
    actor, critic = make(keys=GROUP, observation_key=("agents", "observation"))
    return kind(actor, critic, temperature=0.3, delay_qvalue=False, **options)


def team(loss: LossModule) -> TensorDictBase:
    """Transitions ``[B]`` with one reward for the team."""
    torch.manual_seed(1)
    shape = (BATCH, AGENTS)
    flat = TensorDict({("agents", "observation"): torch.randn(*shape, 3)}, shape)
    with torch.no_grad():
        loss.actor_network(flat)
    batch = TensorDict(batch_size=[BATCH])
    for key, value in flat.items(True, True):
        batch.set(key, value)
    batch["next", "agents", "observation"] = torch.randn(*shape, 3)
    batch["next", "reward"] = torch.randn(BATCH, 1)
    batch["next", "terminated"] = torch.rand(BATCH, 1) > 0.6
    return batch


def flattened(batch: TensorDictBase) -> TensorDictBase:
    """The same as ``B * agents`` transitions of single agents, by hand."""
    single = []
    for b in range(BATCH):
        for a in range(AGENTS):
            row = TensorDict(batch_size=[])
            for key, value in batch.items(True, True):
                row.set(key, value[b, a] if "agents" in key else value[b])
            single.append(row)
    return torch.stack(single)


@ALL
def test_agents_are_single_agents_with_the_teams_reward(kind: type) -> None:
    loss = build(kind)
    batch = team(loss)
    single = flattened(batch)
    before = batch.clone()
    draws = rowwise_draws(loss, single)
    out = loss(batch, draws=draws.reshape(BATCH, AGENTS))
    assert_close(out, loss(single, draws=draws))
    expected = single["td_error"].reshape(BATCH, AGENTS).mean(-1)
    torch.testing.assert_close(batch["td_error"], expected)
    assert_close(batch.exclude("td_error"), before, rtol=0, atol=0)


@ALL
def test_without_reduction_there_is_one_value_per_agent(kind: type) -> None:
    loss = build(kind, reduction="none")
    batch = team(loss)
    assert loss.draw(batch).batch_size == (BATCH, AGENTS)
    out = loss(batch)
    assert out.batch_size == (BATCH, AGENTS)
    assert loss.qvalue_loss(batch)[0].shape == (BATCH, AGENTS)


@ALL
def test_weights_and_masks_of_transitions_hold_for_all_agents(kind: type) -> None:
    loss = build(kind)
    batch = team(loss)
    mask = torch.tensor([True, False, True, True])
    masked = batch.clone().set(("collector", "mask"), mask)
    draws = rowwise_draws(loss, flattened(batch)).reshape(BATCH, AGENTS)
    assert_close(loss(masked, draws=draws), loss(batch[mask], draws=draws[mask]))


def test_actions_in_no_group_raise() -> None:
    batch = TensorDict({"action": torch.zeros(2, 3, 1)}, [2])
    with pytest.raises(ValueError, match=r"is \[2\].*for \[2, 3\].*\('agents', 'action'"):
        per_agent(batch, "action", torch.Size([2, 3]))
    odd = TensorDict(
        {("agents", "action"): torch.zeros(2, 3, 1), ("agents", "x"): torch.ones(2, 1)}, [2]
    )
    with pytest.raises(ValueError, match=r"'x'.*dimensions \[2, 3\]"):
        per_agent(odd, ("agents", "action"), torch.Size([2, 3]))


def test_rollouts_of_several_agents_say_what_would_work() -> None:
    actor, critic, _ = make_networks(keys=GROUP)
    gae = DenoisingGAE(
        gamma=0.9, lmbda=0.9, value_network=critic, actor=actor, temperature=FixedTemperature(0.1)
    )
    rollout = TensorDict({("agents", "latents"): torch.zeros(2, 5, 3, 4, 2)}, [2, 5])
    with pytest.raises(ValueError, match=r"agents before time, \[\*B, agents, T\]"):
        gae(rollout)
