"""A sequence of encoders and an actor as the actor of every loss."""

import copy
import pickle

import pytest
import torch
from loss_builders import (
    ACTION,
    OBSERVATION,
    gradients,
    make_denoising_q_networks,
    make_networks,
    make_off_policy_networks,
)
from rowwise import rowwise_draws
from tensordict import TensorDict, TensorDictBase, assert_close
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.objectives import LossModule

from diffpolicy.actors import EncodedActor
from objectives import DiffPPOLoss, DiffSACLoss, DiffWPOLoss, DIMELoss

PIXELS = 12
ALL = pytest.mark.parametrize("kind", [DIMELoss, DiffSACLoss, DiffPPOLoss, DiffWPOLoss])


def networks(kind: type) -> tuple[nn.Module, TensorDictModule]:
    if kind is DIMELoss:
        return make_off_policy_networks()
    if kind is DiffPPOLoss:
        return make_networks(normalize=False)[:2]
    return make_denoising_q_networks()


def encoder(seed: int = 0) -> TensorDictModule:
    torch.manual_seed(seed)
    return TensorDictModule(nn.Linear(PIXELS, OBSERVATION), ["pixels"], ["observation"])


def build(kind: type) -> tuple[LossModule, LossModule]:
    """A loss with encoders in front of actor and critic, and one on what they write."""
    torch.manual_seed(1)
    actor, critic = networks(kind)
    options = {} if kind is DiffPPOLoss else {"temperature": 0.3, "delay_qvalue": False}
    plain = kind(actor, critic, **options)
    encode = encoder()
    return kind(
        TensorDictSequential(encode, actor), TensorDictSequential(encode, critic), **options
    ), plain


def batches(loss: LossModule, plain: LossModule) -> tuple[TensorDictBase, TensorDictBase]:
    torch.manual_seed(2)
    shape = (3, 4)
    batch = TensorDict({"pixels": torch.randn(*shape, PIXELS)}, shape)
    following = TensorDict({"pixels": torch.randn(*shape, PIXELS)}, shape)
    following["reward"] = torch.randn(*shape, 1)
    following["terminated"] = following["done"] = torch.rand(*shape, 1) > 0.7
    with torch.no_grad():
        loss.actor_network(batch)
        batch["next"] = following
        seen = encoder()(batch.clone())
        encoder()(seen["next"])
    return batch, seen


@ALL
def test_losses_are_those_of_the_encoded_observations(kind: type) -> None:
    loss, plain = build(kind)
    assert isinstance(loss.actor_network, EncodedActor)
    assert loss.actor_network.in_keys == ["pixels"]
    batch, seen = batches(loss, plain)
    assert batch.get("observation", None) is None
    assert "pixels" in loss.in_keys
    assert ("next", "pixels") in loss.in_keys
    draws = rowwise_draws(plain, seen)
    out, expected = loss(batch, draws=draws), plain(seen, draws=draws)
    assert_close(out, expected)
    policy = "loss_objective" if kind is DiffPPOLoss else "loss_actor"
    reached = gradients(loss, out[policy])
    assert any(".encoder." in name for name in reached)


@ALL
def test_copies_and_checkpoints_keep_the_encoder(kind: type) -> None:
    loss, plain = build(kind)
    batch, _ = batches(loss, plain)
    torch.manual_seed(3)
    expected = loss(batch)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        other.load_state_dict(loss.state_dict(), strict=True)
        torch.manual_seed(3)
        assert_close(other(batch), expected)


def test_a_sequence_without_an_actor_raises() -> None:
    _, critic = make_off_policy_networks()
    with pytest.raises(TypeError, match="last module of a TensorDictSequential must be an actor"):
        DIMELoss(TensorDictSequential(encoder(), critic), critic, temperature=0.1)


def test_members_are_those_of_the_actor() -> None:
    actor, _ = make_denoising_q_networks()
    encoded = EncodedActor(TensorDictSequential(encoder(), actor))
    assert encoded.keys is actor.keys
    assert encoded.squash.action_dim == ACTION
    assert encoded.denoising_steps == actor.denoising_steps
    out = encoded(TensorDict({"pixels": torch.randn(2, PIXELS)}, [2]))
    assert set(out.keys()) == {"pixels", *actor.out_keys}
    with pytest.raises(AttributeError, match="no_such_member"):
        _ = encoded.no_such_member
