"""Copies, checkpoints, modes and shared parameters of every loss."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from loss_builders import gradients
from loss_registry import LossCase
from tensordict import TensorDictBase, assert_close
from torch import nn
from torchrl.objectives import LossModule

ROWS, ROLLOUT = (24,), (4, 5)


def networks(loss: LossModule) -> dict[str, nn.Module]:
    return {name: value for name, value in vars(loss).items() if isinstance(value, nn.Module)}


def evaluate(loss: LossModule, batch: TensorDictBase) -> TensorDictBase:
    torch.manual_seed(7)
    return loss(batch)


def saved_and_loaded(loss: LossModule) -> LossModule:
    stream = io.BytesIO()
    torch.save(loss, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES: dict[str, Callable[[LossModule], LossModule]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda loss: pickle.loads(pickle.dumps(loss)),
    "torch.save": saved_and_loaded,
    "deepcopy of parent": lambda loss: copy.deepcopy(nn.ModuleList([loss]))[0],
}


def assert_tied(loss: LossModule) -> None:
    """Networks and functional parameters are the same tensors."""
    for name, network in networks(loss).items():
        params = getattr(loss, f"{name}_params")
        for key, value in (*network.named_parameters(), *network.named_buffers()):
            held = params.get(tuple(key.split(".")))
            assert held.data_ptr() == value.data_ptr(), f"{name}: {key}"
            assert held.dtype == value.dtype


def test_state_dict_round_trip_is_strict(case: LossCase) -> None:
    loss, other = case.build(), case.build(seed=1)
    rows = case.rows(loss, ROWS)
    with pytest.raises(AssertionError):
        assert_close(evaluate(other, rows), evaluate(loss, rows))
    other.load_state_dict(loss.state_dict(), strict=True)
    assert_close(evaluate(other, rows), evaluate(loss, rows), rtol=0, atol=0)
    assert_tied(other)


def test_state_dict_does_not_grow_with_use(case: LossCase) -> None:
    loss = case.build()
    before = list(loss.state_dict())
    loss(case.rollout(loss, ROLLOUT))
    loss(case.rows(loss, ROWS))
    assert list(loss.state_dict()) == before


def test_state_dict_round_trip_inside_a_parent(case: LossCase) -> None:
    loss, other = case.build(), case.build(seed=1)
    rows = case.rows(loss, ROWS)
    loss(rows)
    stream = io.BytesIO()
    torch.save(nn.ModuleDict({"loss": loss}).state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    nn.ModuleDict({"loss": other}).load_state_dict(state, strict=True)
    assert_close(evaluate(other, rows), evaluate(loss, rows), rtol=0, atol=0)


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_equal_and_independent(case: LossCase, how: str) -> None:
    loss = case.build()
    rows, rollout = case.rows(loss, ROWS), case.rollout(loss, ROLLOUT)
    expected = evaluate(loss, rows)
    other = COPIES[how](loss)
    assert_close(evaluate(other, rows), expected, rtol=0, atol=0)
    assert_close(evaluate(other, rollout), evaluate(loss, rollout), rtol=0, atol=0)
    assert list(other.state_dict()) == list(loss.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.5)
    assert_close(evaluate(loss, rows), expected, rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_close(evaluate(other, rows), expected)


@pytest.mark.parametrize("how", COPIES)
def test_networks_of_copies_stay_tied(case: LossCase, how: str) -> None:
    """Acting with ``loss.actor_network`` of a copy uses what its optimiser trains."""
    other = COPIES[how](case.build())
    assert_tied(other)
    assert {id(p) for n in networks(other).values() for p in n.parameters()} <= {
        id(p) for p in other.parameters()
    }


@pytest.mark.parametrize(
    "move",
    [lambda m: m.double(), lambda m: m.float(), lambda m: m.to("cpu"), lambda m: m.share_memory()],
    ids=["double", "float", "to", "share_memory"],
)
def test_moved_networks_stay_tied(case: LossCase, move: Callable) -> None:
    loss = case.build()
    parameters = list(loss.parameters())
    move(nn.ModuleList([loss]))
    assert_tied(loss)
    assert [id(p) for p in loss.parameters()] == [id(p) for p in parameters]


def test_training_mode_reaches_the_networks(case: LossCase) -> None:
    loss = case.build()
    parent = nn.ModuleList([loss])
    assert networks(loss)
    for mode in (False, True):
        parent.train(mode)
        for network in networks(loss).values():
            assert all(module.training == mode for module in network.modules())


def test_reset_parameters_recursive(case: LossCase) -> None:
    loss = case.build()
    params = [name for name, _ in loss.named_parameters() if "_params." in name]
    assert params
    state = dict(loss.named_parameters())
    with torch.no_grad():
        for name in params:
            state[name].add_(1000)
    loss.reset_parameters_recursive()
    for name, parameter in loss.named_parameters():
        if name in params:
            assert bool((parameter.abs() < 100).all()), f"{name} was not reset"


def test_shared_parameters_appear_once(case: LossCase) -> None:
    loss = case.build(share=True)
    names = [name for name, _ in loss.named_parameters()]
    assert len(names) < len([name for name, _ in case.build().named_parameters()])
    assert len({id(p) for p in loss.parameters()}) == len(names)


def test_separate_losses_cut_shared_gradients(case: LossCase) -> None:
    joint = case.build(share=True)
    separate = case.build(share=True, separate_losses=True)
    rows = case.rows(joint, ROWS)
    out_joint, out_separate = case.call(joint, rows), case.call(separate, rows)
    assert_close(out_joint, out_separate, rtol=0, atol=0)
    actor = ("actor_network_params.",)
    crossing = 0
    for key, prefixes in case.reach.items():
        if not any(prefix.startswith(actor) for prefix in prefixes):
            crossing += any(name.startswith(actor) for name in gradients(joint, out_joint[key]))
            reached = gradients(separate, out_separate[key])
            assert not any(name.startswith(actor) for name in reached), key
    assert crossing, "without separate_losses the critic trains the shared parameters"
    assert [n for n, _ in joint.named_parameters()] == [n for n, _ in separate.named_parameters()]


@pytest.mark.parametrize("how", [None, *COPIES])
def test_separate_losses_share_values_only(case: LossCase, how: str | None) -> None:
    loss = case.build(share=True, separate_losses=True)
    if how is not None:
        loss = COPIES[how](loss)
    rows = case.rows(loss, ROWS)
    key = next(
        k
        for k, prefixes in case.reach.items()
        if len(prefixes) == 1 and "_network" in prefixes[0] and not prefixes[0].startswith("actor")
    )
    value = case.call(loss, rows)[key]
    before = value.detach()
    assert not any(name.startswith("actor_network_params") for name in gradients(loss, value))
    network = getattr(loss, case.reach[key][0].removesuffix("_params."))
    critic = {id(p) for p in network.parameters()}
    shared = [p for p in loss.actor_network.parameters() if id(p) in critic]
    assert shared
    with torch.no_grad():
        for parameter in shared:
            parameter.add_(0.5)
    assert not torch.allclose(case.call(loss, rows)[key], before)


def test_an_optimiser_step_moves_the_acting_policy(case: LossCase) -> None:
    loss = case.build()
    rows = case.rows(loss, ROWS)
    observation = case.rollout(loss, ROLLOUT).select(*loss.actor_network.in_keys)

    def act() -> TensorDictBase:
        torch.manual_seed(3)
        with torch.no_grad():
            return loss.actor_network(observation.clone())

    before = act()
    optimizer = torch.optim.SGD(loss.parameters(), 0.5)
    out = loss(rows)
    sum(out[key] for key in case.reach).backward()
    optimizer.step()
    with pytest.raises(AssertionError):
        assert_close(act(), before)
