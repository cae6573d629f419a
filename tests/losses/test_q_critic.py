"""Ensembles of Q networks in every form: layouts, lists, copies, heads, and what is refused."""

from typing import Any

import pytest
import torch
from loss_builders import (
    ACTION,
    OBSERVATION,
    gradients,
    make_denoising_q_networks,
    make_off_policy_networks,
    make_rollout,
)
from rowwise import rowwise_draws
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import EnsembleModule, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.objectives import LossModule, SoftUpdate

from diffpolicy.networks import CategoricalSupport, HLGauss
from objectives import DiffSACLoss, DiffWPOLoss, DIMELoss


class Pair(nn.Module):
    """A Q network of two inputs, the second one an action or a latent, and perhaps a step."""

    def __init__(self, outputs: int = 1, head: nn.Module | None = None) -> None:
        super().__init__()
        sizes = (OBSERVATION + ACTION, 8, outputs)
        self.net = nn.Sequential(nn.Linear(*sizes[:2]), nn.Tanh(), nn.Linear(*sizes[1:]))
        self.head = head

    def forward(self, observation: Tensor, action: Tensor, step: Tensor | None = None) -> Any:
        out = self.net(torch.cat((observation, action), -1))
        if step is not None:
            out = out + 0.3 * step
        return out if self.head is None else (self.head.mean(out), out)


VALUE, LOGITS = "state_action_value", "state_action_value_logits"
IN_KEYS = {
    DIMELoss: ["observation", "action"],
    DiffSACLoss: ["observation", "next_latent", "step"],
    DiffWPOLoss: ["observation", "next_latent", "step"],
}
ALL = pytest.mark.parametrize("kind", IN_KEYS)


def q_network(kind: type, network: nn.Module | None = None) -> TensorDictModule:
    network = network or Pair()
    keys = [VALUE] if network.head is None else [VALUE, LOGITS]
    return TensorDictModule(network, IN_KEYS[kind], keys)


def make_actor(kind: type) -> Any:
    return (make_off_policy_networks() if kind is DIMELoss else make_denoising_q_networks())[0]


def build(kind: type, networks: Any, **options: Any) -> LossModule:
    return kind(make_actor(kind), networks, temperature=0.3, **options)


def batch_for(loss: LossModule, *shape: int) -> TensorDictBase:
    batch = make_rollout(loss.actor_network, shape)
    batch.names = None
    return batch


def call(loss: LossModule, batch: TensorDictBase) -> TensorDictBase:
    return loss(batch, draws=rowwise_draws(loss, batch))


def members(ensemble: EnsembleModule, kind: type) -> list[TensorDictModule]:
    """The critics of an EnsembleModule, each on its own."""
    single = []
    for params in ensemble.params_td.unbind(0):
        network = q_network(kind)
        params.data.clone().to_module(network)
        single.append(network)
    return single


@ALL
@pytest.mark.parametrize("shape", [(2,), (3,), (2, 2)])
@pytest.mark.parametrize("delay", [False, True])
def test_an_ensemble_module_is_the_list_of_its_critics(kind: type, shape: Any, delay: bool) -> None:
    """Also with as many critics as rows: the layout is known, not guessed."""
    torch.manual_seed(0)
    ensemble = EnsembleModule(q_network(kind), 2)
    torch.manual_seed(1)
    first = build(kind, ensemble, critic_reduction="min", delay_qvalue=delay)
    single = members(ensemble, kind)
    torch.manual_seed(1)
    second = build(kind, single, critic_reduction="min", delay_qvalue=delay)
    if delay:
        SoftUpdate(first, tau=0.1), SoftUpdate(second, tau=0.1)
    batch = batch_for(first, *shape)
    ours, theirs = call(first, batch), call(second, batch)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, msg=lambda m, k=key: f"{k}: {m}")
    torch.testing.assert_close(
        torch.stack(list(gradients(first, ours["loss_actor"]).values())[:1]),
        torch.stack(list(gradients(second, theirs["loss_actor"]).values())[:1]),
    )
    reached = gradients(first, ours["loss_qvalue"])
    assert reached
    assert all(bool(gradient.abs().sum() > 0) for gradient in reached.values())


@ALL
def test_the_minimum_over_an_ensemble_module_is_that_of_each_row(kind: type) -> None:
    torch.manual_seed(0)
    ensemble = EnsembleModule(q_network(kind), 3)
    loss = build(kind, ensemble, critic_reduction="min", delay_qvalue=False)
    inputs = TensorDict({"observation": torch.randn(3, OBSERVATION)}, [3])
    for key in ("action", "next_latent"):
        inputs[key] = torch.randn(3, ACTION)
    inputs["step"] = torch.arange(3).unsqueeze(-1)
    values = loss.critic.evaluate(loss.qvalue_network_params, inputs, loss.tensor_keys).value
    assert values.shape == (3, 3, 1)
    for row in range(3):
        single = ensemble(inputs[row : row + 1].clone())[VALUE].flatten()
        torch.testing.assert_close(values[row].flatten(), single)
        torch.testing.assert_close(loss.critic.over_critics(values)[row, 0], single.min())


@ALL
def test_an_ensemble_module_behind_an_encoder(kind: type) -> None:
    torch.manual_seed(0)
    encoder = TensorDictModule(nn.Linear(OBSERVATION, OBSERVATION), ["observation"], ["features"])
    network = q_network(kind)
    network.in_keys[0] = "features"
    sequence = TensorDictSequential(encoder, EnsembleModule(network, 2))
    loss = build(kind, sequence, delay_qvalue=False)
    values = call(loss, batch_for(loss, 2))
    assert all(bool(value.isfinite().all()) for value in values.values())


@ALL
def test_copies_are_drawn_anew(kind: type) -> None:
    loss = build(kind, q_network(kind), num_qvalue_nets=3, delay_qvalue=False)
    weights = [net.module.net[0].weight for net in loss.qvalue_network.networks]
    assert len(weights) == 3
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    values = call(loss, batch_for(loss, 4))
    assert bool(values["loss_qvalue"].isfinite())


def test_copies_and_lists_share_one_head() -> None:
    head = CategoricalSupport(-3.0, 3.0, 7)
    loss = build(DIMELoss, q_network(DIMELoss, Pair(7, head)), num_qvalue_nets=2)
    assert loss.value_support is head
    listed = build(DIMELoss, [q_network(DIMELoss, Pair(7, head)) for _ in range(2)])
    out = call(listed, batch_for(listed, 4))
    assert {"value_clip_fraction", "critic_entropy"} <= set(out.keys())
    with pytest.raises(ValueError, match="2 heads; let its members share one"):
        build(DIMELoss, [q_network(DIMELoss, Pair(7, CategoricalSupport())) for _ in range(2)])


def test_dime_trains_hl_gauss_critics_by_cross_entropy() -> None:
    head = HLGauss(-3.0, 3.0, 9)
    loss = build(DIMELoss, q_network(DIMELoss, Pair(9, head)), delay_qvalue=False)
    batch = batch_for(loss, 6)
    value, found = loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch))
    _, logits = loss.qvalue_network.module(batch["observation"], batch["action"])
    # The mean target is reported; the rows' own come from a copy without reduction.
    rowwise = DIMELoss(loss.actor_network, loss.qvalue_network, temperature=0.3, reduction="none")
    targets = rowwise.qvalue_loss(batch, draws=rowwise_draws(loss, batch))[1]["target_value"]
    torch.testing.assert_close(value, head.loss(logits, targets.unsqueeze(-1)).mean())
    assert 0 <= float(found["value_clip_fraction"]) <= 1


class Fixed(nn.Module):
    """Writes values of a shape that does not depend on the layout that was promised."""

    head = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.value


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3), (4, 2, 2, 1)])
def test_values_of_another_shape_raise(shape: tuple[int, ...]) -> None:
    loss = build(DIMELoss, q_network(DIMELoss, Fixed(shape)))
    with pytest.raises(ValueError, match="qvalue_network must write 'state_action_value'"):
        loss.actor_loss(batch_for(loss, 4))


def test_a_value_under_another_key_names_set_keys() -> None:
    network = TensorDictModule(Pair(), ["observation", "action"], ["q"])
    loss = build(DIMELoss, network)
    with pytest.raises(KeyError, match=r"state_action_value.*loss.set_keys"):
        loss.actor_loss(batch_for(loss, 4))
    loss.set_keys(state_action_value="q")
    assert bool(loss.actor_loss(batch_for(loss, 4))[0].isfinite())


@pytest.mark.parametrize(
    ("networks", "number", "error", "message"),
    [
        (lambda: [nn.Linear(1, 1)], None, TypeError, "TensorDictModule or a list.*got Linear"),
        (lambda: [None, None], None, TypeError, "got NoneType"),
        (lambda: [], None, ValueError, "one or more networks"),
        (lambda: [q_network(DIMELoss)] * 2, 3, ValueError, "num_qvalue_nets=3.*list of 2"),
        (lambda: q_network(DIMELoss), 0, ValueError, "num_qvalue_nets=0"),
        (lambda: q_network(DIMELoss, Fixed((4, 1))), 2, ValueError, "pass a list of networks"),
    ],
)
def test_networks_that_do_not_fit_raise(
    networks: Any, number: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        build(DIMELoss, networks(), num_qvalue_nets=number)


def test_heads_inside_an_ensemble_module_are_refused() -> None:
    network = EnsembleModule(q_network(DIMELoss, Pair(7, CategoricalSupport(-3, 3, 7))), 2)
    with pytest.raises(ValueError, match="EnsembleModule copies the head"):
        build(DIMELoss, network)
