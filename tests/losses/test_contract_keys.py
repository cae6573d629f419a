"""Keys of every loss: defaults, renaming, keyword calls, inputs and outputs."""

import pytest
import torch
from loss_registry import CASES, EACH_CASE, VARIANTS, LossCase
from tensordict import NestedKey, TensorDictBase, assert_close
from torch import nn
from torchrl.objectives import LossModule
from torchrl.objectives.utils import ValueEstimators

import objectives

ROWS, ROLLOUT = (24,), (4, 5)


def fields(case: LossCase) -> list[str]:
    """Keys that can be renamed; the action is where the actor writes it."""
    return [name for name in case.loss_class._AcceptedKeys.__dataclass_fields__ if name != "action"]


def each(attribute: str) -> pytest.MarkDecorator:
    """Parametrise over (case, field) for the fields that ``attribute`` of the case lists."""
    pairs = [
        pytest.param(case, name, marks=param.marks, id=f"{case.name}-{name}")
        for param in EACH_CASE
        for case in param.values
        for name in getattr(case, attribute)
    ]
    return pytest.mark.parametrize(("case", "name"), pairs)


def evaluate(loss: LossModule, batch: TensorDictBase) -> TensorDictBase:
    torch.manual_seed(7)
    return loss(batch)


def batches(case: LossCase, loss: LossModule) -> list[tuple[TensorDictBase, list[NestedKey]]]:
    """A rollout and rows, each with the keys that the loss reads from it."""
    rows = case.rows(loss, ROWS).exclude(loss.tensor_keys.priority_weight)
    return [
        (case.rollout(loss, ROLLOUT), loss.in_keys),
        (rows, loss.in_keys if case.rows_are_transitions else loss.row_keys),
    ]


def keywords(batch: TensorDictBase, keys: list[NestedKey]) -> dict[str, torch.Tensor]:
    """Entries of a batch, named as TorchRL's keyword calls do."""
    return {key if isinstance(key, str) else "_".join(key): batch[key] for key in keys}


def test_action_is_where_the_actor_writes_it(case: LossCase) -> None:
    loss, nested = case.build(), case.build(nested=True)
    loss.set_keys(reward="reward", done="done", terminated="terminated", action="action")
    assert nested.tensor_keys.action == ("agent", "action")
    nested.set_keys(action=("agent", "action"))
    with pytest.raises(ValueError, match=r"action='move'.*writes its action to 'action'"):
        loss.set_keys(action="move")


#: A base, a loss without critics, and those made of the parts of others; they have tests of
#: their own.
ELSEWHERE: set[type[LossModule]] = {
    objectives.BehaviorCloningLoss,
    objectives.DIPOLoss,
    objectives.DenoisingRegressionLoss,
    objectives.FPMDLoss,
    objectives.SDACLoss,
}


def test_every_exported_loss_is_registered() -> None:
    exported = {getattr(objectives, name) for name in objectives.__all__}
    losses = {x for x in exported if isinstance(x, type) and issubclass(x, LossModule)}
    assert losses
    missing = losses - {case.loss_class for case in CASES} - ELSEWHERE
    assert not missing, f"add a LossCase to tests/losses/support/loss_registry.py for {missing}"


def test_case_names_are_unique() -> None:
    names = {case.name for case in CASES}
    assert len(names) == len(CASES)
    assert names >= VARIANTS


def test_unknown_key_raises(case: LossCase) -> None:
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        case.build().set_keys(no_such_key="x")


def test_default_keys(case: LossCase) -> None:
    assert case.build().tensor_keys == case.loss_class.default_keys()


def test_set_keys_one_by_one(case: LossCase) -> None:
    for name in fields(case):
        loss = case.build(loss_keys={name: "renamed"})
        defaults = case.loss_class.default_keys()
        for other in fields(case):
            wanted = "renamed" if other == name else getattr(defaults, other)
            assert getattr(loss.tensor_keys, other) == wanted


def test_set_all_keys_and_reset_them(case: LossCase) -> None:
    renamed = {name: ("renamed", name) for name in fields(case)}
    loss = case.build(loss_keys=renamed)
    assert vars(loss.tensor_keys) == {"action": "action", **renamed}
    kept = {"value"}  # the network still writes the renamed value
    loss.set_keys(**dict.fromkeys(set(fields(case)) - kept))
    for name in set(fields(case)) - kept:
        assert getattr(loss.tensor_keys, name) == getattr(case.loss_class.default_keys(), name)


def test_value_estimator_follows_the_keys(case: LossCase) -> None:
    shared = [n for n in LossModule._value_estimator_default_keys if n in fields(case)]
    renamed = {name: ("renamed", name) for name in shared}
    loss = case.build(loss_keys=renamed)
    estimators = [loss.value_estimator]
    # An estimator that is made later gets the keys as well.
    estimators.append(loss.make_value_estimator(case.estimators[0]).value_estimator)
    for estimator in estimators:
        for name, key in renamed.items():
            assert getattr(estimator.tensor_keys, name) == key


@each("row_fields")
def test_renamed_row_keys_are_read(case: LossCase, name: str) -> None:
    check_renamed(case, name, case.rows, ROWS)


@each("rollout_fields")
def test_renamed_rollout_keys_are_read(case: LossCase, name: str) -> None:
    check_renamed(case, name, case.rollout, ROLLOUT)


def check_renamed(case: LossCase, name: str, make_batch, shape: tuple[int, ...]) -> None:
    loss = case.build()
    renamed = case.build(loss_keys={name: ("renamed", name)})
    batch = make_batch(loss, shape)
    expected = evaluate(loss, batch)
    assert_close(evaluate(renamed, make_batch(renamed, shape)), expected)
    try:
        out = evaluate(renamed, batch)
    except KeyError:
        return
    with pytest.raises(AssertionError):
        assert_close(out, expected)


def test_nested_observation_and_chain_keys(case: LossCase) -> None:
    plain, nested = case.build(), case.build(nested=True)
    for make_batch, shape in ((case.rows, ROWS), (case.rollout, ROLLOUT)):
        expected = evaluate(plain, make_batch(plain, shape))
        assert_close(evaluate(nested, make_batch(nested, shape)), expected)


@pytest.mark.parametrize("nested", [False, True])
def test_in_keys_are_sufficient_and_unique(case: LossCase, nested: bool) -> None:
    loss = case.build(nested=nested)
    assert len(set(loss.in_keys)) == len(loss.in_keys)
    for batch, keys in batches(case, loss):
        assert_close(evaluate(loss, batch.select(*keys)), evaluate(loss, batch))


def test_in_keys_are_necessary(case: LossCase) -> None:
    loss = case.build()
    for batch, keys in batches(case, loss):
        for key in keys:
            with pytest.raises(KeyError):
                loss(batch.exclude(key))


def test_in_keys_follow_renamed_keys(case: LossCase) -> None:
    for name in case.rollout_fields:
        loss = case.build(loss_keys={name: ("renamed", name)})
        assert ("next", "renamed", name) in loss.in_keys


def test_in_keys_can_be_set(case: LossCase) -> None:
    loss = case.build()
    chosen = loss.in_keys[:2]
    loss.in_keys = chosen
    assert loss.in_keys == chosen


def test_keyword_call_equals_tensordict_call(case: LossCase) -> None:
    loss = case.build()
    for batch, keys in batches(case, loss):
        torch.manual_seed(7)
        values = loss(**keywords(batch, keys))
        expected = evaluate(loss, batch)
        assert len(values) == len(loss.out_keys)
        for key, value in zip(loss.out_keys, values, strict=True):
            torch.testing.assert_close(value, expected[key])


def test_out_keys_are_exact(case: LossCase) -> None:
    loss = case.build()
    for batch in (case.rows(loss, ROWS), case.rollout(loss, ROLLOUT)):
        assert sorted(loss(batch).keys()) == sorted(loss.out_keys)
    assert len(set(loss.out_keys)) == len(loss.out_keys)


def test_out_keys_have_losses_first(case: LossCase) -> None:
    keys = case.build().out_keys
    losses = [key for key in keys if key.startswith("loss_")]
    assert keys[: len(losses)] == losses
    assert set(losses) == {*case.reach, *case.without_gradient}


def test_select_out_keys(case: LossCase) -> None:
    loss = case.build()
    rollout = case.rollout(loss, ROLLOUT)
    expected = evaluate(loss, rollout)
    chosen = [loss.out_keys[-1], loss.out_keys[0]]
    loss.select_out_keys(*chosen)
    assert list(loss.out_keys) == chosen
    assert_close(evaluate(loss, rollout), expected.select(*chosen))
    torch.manual_seed(7)
    values = loss(**keywords(rollout, loss.in_keys))
    torch.testing.assert_close(list(values), [expected[key] for key in chosen])


def test_input_is_unchanged(case: LossCase) -> None:
    loss = case.build()
    for batch in (case.rows(loss, ROWS), case.rollout(loss, ROLLOUT)):
        before, shape = batch.clone(), batch.batch_size
        loss(batch)
        replayed = "priority" in fields(case) and (case.priorities or shape == ROLLOUT)
        if replayed:  # the one entry that is written, for prioritised replay
            assert batch[loss.tensor_keys.priority].shape == shape
            batch = batch.exclude(loss.tensor_keys.priority)
        assert set(batch.keys(True, True)) == set(before.keys(True, True))
        assert_close(batch, before, rtol=0, atol=0)
        assert batch.batch_size == shape


def test_locked_input_is_accepted(case: LossCase) -> None:
    loss = case.build()
    for batch in (case.rows(loss, ROWS), case.rollout(loss, ROLLOUT)):
        expected = evaluate(loss, batch)
        assert_close(evaluate(loss, batch.lock_()), expected)


def test_unsupported_estimators_raise(case: LossCase) -> None:
    loss = case.build()
    for kind in ValueEstimators:
        if kind in case.estimators:
            assert loss.make_value_estimator(kind, gamma=0.9) is loss
            assert float(loss.value_estimator.gamma) == pytest.approx(0.9)
        else:
            with pytest.raises(NotImplementedError, match="not implemented"):
                loss.make_value_estimator(kind)


def test_estimator_accepts_alias_class_instance_and_device(case: LossCase) -> None:
    loss = case.build()
    rollout = case.rollout(loss, ROLLOUT)
    expected = evaluate(loss.make_value_estimator(case.estimators[0], gamma=0.9), rollout)
    alias = case.estimators[0].name.lower()
    assert_close(evaluate(loss.make_value_estimator(alias, gamma=0.9), rollout), expected)
    estimator = loss.value_estimator
    other = case.build()
    other.make_value_estimator(estimator)
    assert other.value_estimator is estimator
    loss.make_value_estimator(case.estimators[0], gamma=0.9, device=torch.device("cpu"))
    assert_close(evaluate(loss, rollout), expected)


def test_estimator_is_made_on_demand(case: LossCase) -> None:
    loss = case.build()
    rollout = case.rollout(loss, ROLLOUT)
    expected = evaluate(loss, rollout)
    loss._value_estimator = None
    assert_close(evaluate(loss, rollout), expected)


def test_constructor_takes_no_gamma(case: LossCase) -> None:
    with pytest.raises(TypeError):
        case.loss_class(nn.Identity(), nn.Identity(), gamma=0.9)
