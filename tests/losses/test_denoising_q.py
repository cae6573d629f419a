"""What DiffSAC and DiffWPO share at their doors: masks, detached latents, refused networks."""

from typing import Any

import pytest
import torch
from loss_builders import make_denoising_q_networks, make_networks, make_rollout
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import LossModule

from objectives import DiffSACLoss, DiffWPOLoss, LearnedTemperature

ROWS = 12


def build(kind: type[LossModule], **options: Any) -> LossModule:
    torch.manual_seed(0)
    actor, critic = make_denoising_q_networks()
    return kind(actor, critic, **{"temperature": 0.3, "delay_qvalue": False, **options})


def transitions(loss: LossModule) -> TensorDictBase:
    batch = make_rollout(loss.actor_network, (ROWS,))
    batch.names = None
    return batch


def backward(loss: LossModule, batch: TensorDictBase) -> None:
    sum(value for key, value in loss(batch).items() if key.startswith("loss_")).backward()


@pytest.mark.parametrize("kind", [DiffSACLoss, DiffWPOLoss])
def test_padding_in_replay_reaches_no_gradient(kind: type[LossModule]) -> None:
    loss = build(kind)
    batch = transitions(loss)
    mask = torch.arange(ROWS) % 3 == 0
    # Padding of zeros has kernels without width.
    std = torch.where(mask[:, None, None], batch["kernel_std"], 0.0)
    batch.set("kernel_std", std)
    backward(loss, batch.set(("collector", "mask"), mask))
    for name, parameter in loss.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_latents_of_rows_get_no_gradient() -> None:
    loss = build(DiffWPOLoss)
    rollout = make_rollout(loss.actor_network, (3, 4))
    rows = loss.chain_rows(loss.value_estimator(rollout)).reshape(-1).clone()
    latents = [rows[key].requires_grad_() for key in ("latent", "next_latent")]
    backward(loss, rows)
    assert all(latent.grad is None for latent in latents)
    assert all(rows[key].requires_grad for key in ("latent", "next_latent"))


def test_critic_may_read_only_what_rows_hold() -> None:
    actor, critic = make_denoising_q_networks()
    asymmetric = TensorDictModule(
        nn.Identity(), in_keys=[*critic.in_keys, "privileged"], out_keys=["state_action_value"]
    )
    with pytest.raises(ValueError, match=r"qvalue_network reads \['privileged'\], but rows hold"):
        DiffSACLoss(actor, asymmetric, temperature=0.1)


def test_target_actor_with_observation_statistics_is_refused() -> None:
    actor, *_ = make_networks(normalize=True)
    _, critic = make_denoising_q_networks()
    with pytest.raises(ValueError, match=r"statistics of RunningNorm.*normalize_observations=Fal"):
        DiffWPOLoss(actor, critic, temperature=0.1, delay_actor=True)


def test_centring_follows_the_target_entropy() -> None:
    loss = build(
        DiffSACLoss, temperature=LearnedTemperature(0.5, target_entropy=-2.0), center_entropy=True
    )
    batch = transitions(loss)

    def target() -> float:
        torch.manual_seed(3)
        return float(loss(batch)["target_value"])

    before = target()
    loss.temperature.target_entropy = -50.0
    assert target() > before + 1.0
