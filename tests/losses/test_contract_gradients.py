"""Gradients, reductions, masks and weights of every loss."""

import pytest
import torch
import torch.distributed as dist
from loss_builders import gradients, to_double
from loss_registry import CASES, LossCase
from rowwise import rowwise_draws
from tensordict import TensorDictBase, assert_close
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from objectives import DiffPPOLoss

ROWS, ROLLOUT = (24,), (4, 5)
# Compiling takes half a minute: the first case of one loss, and with the slow tests the first and
# the last one of each.
PER_LOSS = {
    case.loss_class: [c for c in CASES if c.loss_class is case.loss_class] for case in CASES
}
FIRST = [PER_LOSS[DiffPPOLoss][0]]
COMPILED = [
    pytest.param(case, marks=() if case in FIRST else pytest.mark.slow)
    for cases in PER_LOSS.values()
    for case in (cases[0], cases[-1])
]


def loss_keys(out: TensorDictBase) -> list[str]:
    return [key for key in out.keys() if key.startswith("loss_")]  # noqa: SIM118 -- not a dict


def total(out: TensorDictBase) -> torch.Tensor:
    return sum(out[key].sum() for key in loss_keys(out))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_carry_gradient_and_the_rest_is_detached(case: LossCase, reduction: str) -> None:
    loss = case.build(reduction=reduction)
    for batch in (case.rows(loss, ROWS), case.rollout(loss, ROLLOUT)):
        out = case.call(loss, batch)
        for key, value in out.items():
            assert value.requires_grad == (key in case.reach), key
            assert bool(value.isfinite().all()), key


def test_each_loss_reaches_its_own_parameters_only(case: LossCase) -> None:
    loss = case.build()
    names = [name for name, _ in loss.named_parameters()]
    for batch in (case.rows(loss, ROWS), case.rollout(loss, ROLLOUT)):
        out = case.call(loss, batch)
        for key, prefixes in case.reach.items():
            reached = gradients(loss, out[key])
            assert set(reached) == {name for name in names if name.startswith(prefixes)}, key
            for name, gradient in reached.items():
                assert bool(gradient.abs().sum() > 0), f"{key} has a zero gradient in {name}"


def _trained(loss: LossModule) -> dict[str, torch.nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: p for name, p in loss.named_parameters() if p.requires_grad}


def test_all_parameters_are_used(case: LossCase) -> None:
    loss = case.build()
    total(case.call(loss, case.rows(loss, ROWS))).backward()
    for name, parameter in _trained(loss).items():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


def test_no_targets_or_templates_among_the_parameters(case: LossCase) -> None:
    loss = case.build()
    names = [name for name, _ in loss.named_parameters()]
    assert len(set(names)) == len(names)
    assert len({id(p) for p in loss.parameters()}) == len(names)
    networks = [name for name, value in vars(loss).items() if isinstance(value, torch.nn.Module)]
    assert networks
    for name in names:
        assert not name.startswith(("target_", "_value_estimator"))
        assert name.split(".")[0] not in networks
    buffers = [name for name, _ in loss.named_buffers()]
    assert len(set(buffers)) == len(buffers)
    assert not set(buffers) & set(names)


def keep_local(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The all-reduce of a single rank."""
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_distributed_data_parallel_finds_every_gradient(case: LossCase) -> None:
    # One rank without communication: gloo's threads can deadlock with the interpreter's lock
    # when a group is destroyed in a process that lives on.
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        loss = case.build()
        rows = case.rows(loss, ROWS)
        total(case.call(loss, rows)).backward()
        expected = {name: p.grad.clone() for name, p in _trained(loss).items()}
        wrapped = DistributedDataParallel(loss)
        wrapped.register_comm_hook(None, keep_local)
        for _ in range(2):  # a parameter without gradient makes the second round raise
            loss.zero_grad()
            total(wrapped(rows, draws=rowwise_draws(loss, rows))).backward()
        for name, parameter in _trained(loss).items():
            torch.testing.assert_close(parameter.grad, expected[name])
    finally:
        dist.destroy_process_group()


def test_reductions_agree(case: LossCase) -> None:
    outs = {}
    for reduction in ("none", "mean", "sum"):
        loss = case.build(reduction=reduction)
        rows = case.rows(loss, ROWS).exclude(loss.tensor_keys.priority_weight)
        outs[reduction] = case.call(loss, rows)
    assert outs["none"].batch_size == ROWS
    assert outs["mean"].batch_size == outs["sum"].batch_size == ()
    for key in loss_keys(outs["none"]):
        torch.testing.assert_close(outs["none"][key].mean(0), outs["mean"][key])
        torch.testing.assert_close(outs["none"][key].sum(0), outs["sum"][key])
    for key in set(outs["none"].keys()) - set(loss_keys(outs["none"])):
        torch.testing.assert_close(outs["sum"][key], outs["mean"][key])
        if key in case.batch_statistics:
            torch.testing.assert_close(outs["none"][key], outs["mean"][key].expand(ROWS))
        else:
            torch.testing.assert_close(outs["none"][key].mean(0), outs["mean"][key])
            assert outs["none"][key].shape == ROWS


def test_unknown_reduction_raises(case: LossCase) -> None:
    with pytest.raises(ValueError, match="reduction must be"):
        case.build(reduction="average")


def test_priority_weights_make_a_weighted_mean(case: LossCase) -> None:
    loss, elementwise = case.build(), case.build(reduction="none")
    rows = case.rows(loss, ROWS)
    weight = rows[loss.tensor_keys.priority_weight]
    plain = case.call(elementwise, rows.exclude(loss.tensor_keys.priority_weight))
    weighted = case.call(elementwise, rows)
    out = case.call(loss, rows)
    for key in loss_keys(out):
        torch.testing.assert_close(weighted[key], plain[key] * weight)
        torch.testing.assert_close(out[key], (plain[key] * weight).sum() / weight.sum())
    column = rows.clone().set(loss.tensor_keys.priority_weight, weight.unsqueeze(-1))
    assert_close(case.call(loss, column), out)


@pytest.mark.parametrize("padding", ["zeros", "noise"])
@pytest.mark.parametrize("shape", [ROWS, (*ROWS, 1)], ids=["flat", "column"])
def test_mask_equals_dropping_the_rows(case: LossCase, padding: str, shape: tuple) -> None:
    loss = case.build()
    rows = case.rows(loss, ROWS)
    mask = torch.arange(ROWS[0]) % 3 != 0
    masked = rows.clone()
    for key, value in masked.items(True, True):
        if value.is_floating_point():
            bad = torch.zeros_like(value) if padding == "zeros" else 2 * torch.randn_like(value)
            view = mask.view(-1, *[1] * (value.ndim - 1))
            masked.set(key, torch.where(view, value, bad))
    masked.set(("collector", "mask"), mask.view(shape))
    out, expected = case.call(loss, masked), case.call(loss, rows[mask])
    assert_close(out, expected)
    for key in case.reach:
        wanted = gradients(loss, expected[key])
        for name, gradient in gradients(loss, out[key]).items():
            torch.testing.assert_close(gradient, wanted[name])


def test_mask_keeps_the_shape_without_reduction(case: LossCase) -> None:
    loss = case.build(reduction="none")
    rows = case.rows(loss, ROWS)
    mask = torch.arange(ROWS[0]) % 3 != 0
    out = case.call(loss, rows.clone().set(("collector", "mask"), mask))
    for key in loss_keys(out):
        assert out[key].shape == ROWS
        assert not bool(out[key][~mask].any())


def test_mask_of_a_rollout_is_taken_along(case: LossCase) -> None:
    loss = case.build()
    rollout = case.rollout(loss, ROLLOUT)
    mask = torch.ones(ROLLOUT, dtype=torch.bool)
    mask[0] = False
    torch.manual_seed(3)
    out = loss(rollout.clone().set(("collector", "mask"), mask))
    torch.manual_seed(3)
    everything = loss(rollout)
    with pytest.raises(AssertionError):
        assert_close(out, everything)


def test_extra_batch_dimensions(case: LossCase) -> None:
    loss = case.build()
    rows = case.rows(loss, ROWS)
    assert_close(case.call(loss, rows.reshape(2, 3, 4)), case.call(loss, rows))
    elementwise = case.build(reduction="none")
    out = case.call(elementwise, rows.reshape(4, 6))
    assert out.batch_size == (4, 6)
    assert_close(out.reshape(-1), case.call(elementwise, rows))


def test_single_row(case: LossCase) -> None:
    loss = case.build()
    out = case.call(loss, case.rows(loss, (1,)))
    for key, value in out.items():
        assert bool(value.isfinite()), key


def test_rollout_of_several_batch_dimensions(case: LossCase) -> None:
    loss = case.build()
    out = case.call(loss, case.rollout(loss, (2, 2, 3)))
    assert all(bool(value.isfinite()) for value in out.values())


def test_double_precision(case: LossCase) -> None:
    loss, double = case.build(), case.build().double()
    rows = case.rows(loss, ROWS)
    out = case.call(double, to_double(rows))
    for key, value in out.items():
        assert value.dtype == torch.float64, key
        torch.testing.assert_close(value.float(), case.call(loss, rows)[key], rtol=1e-3, atol=1e-4)
    rollout = case.call(double, to_double(case.rollout(loss, ROLLOUT)))
    assert all(value.dtype == torch.float64 for value in rollout.values())


def test_terminated_is_not_bootstrapped_but_truncated_is(case: LossCase) -> None:
    loss = case.build()
    rollout = case.rollout(loss, ROLLOUT)
    following = rollout["next"]
    following["done"] = torch.ones_like(following["done"])

    def run(terminated: bool, shift: float) -> TensorDictBase:
        batch = rollout.clone()
        batch["next", "terminated"] = torch.full_like(following["terminated"], terminated)
        batch["next", "observation"] = following["observation"] + shift
        torch.manual_seed(3)
        return loss(batch)

    assert_close(run(True, 0.0), run(True, 1.0))
    for changed in (run(False, 1.0), run(True, 0.0)):
        with pytest.raises(AssertionError):
            assert_close(run(False, 0.0), changed)


def test_exploration_type_does_not_matter(case: LossCase) -> None:
    """TorchRL runs losses under DETERMINISTIC; a loss that samples must do so regardless."""
    loss = case.build()
    rows = case.rows(loss, ROWS)
    outs = []
    for kind in (ExplorationType.RANDOM, ExplorationType.MEAN, ExplorationType.DETERMINISTIC):
        torch.manual_seed(3)
        with set_exploration_type(kind):
            outs.append(loss(rows))
    for out in outs[1:]:
        assert_close(out, outs[0], rtol=0, atol=0)
    again = loss(rows)
    if case.samples:
        with pytest.raises(AssertionError):
            assert_close(again, outs[0])
    else:
        assert_close(again, outs[0], rtol=0, atol=0)


def test_same_seed_same_loss(case: LossCase) -> None:
    loss = case.build()
    rollout = case.rollout(loss, ROLLOUT)
    outs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outs.append(loss(rollout))
    assert_close(outs[0], outs[1], rtol=0, atol=0)
    with pytest.raises(AssertionError):  # at least the bootstrap draws a fresh chain
        assert_close(outs[0], outs[2], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt:FutureWarning")
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_compiled_loss_equals_eager(case: LossCase) -> None:
    torch._dynamo.reset()
    loss = case.build()
    rows = case.rows(loss, ROWS).set(("collector", "mask"), torch.arange(ROWS[0]) % 3 != 0)
    expected = case.call(loss, rows)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")(
        rows, draws=rowwise_draws(loss, rows)
    )
    assert_close(compiled, expected)
    for key in case.reach:
        wanted = gradients(loss, expected[key])
        actual = gradients(loss, compiled[key])
        assert set(actual) == set(wanted)
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient, wanted[name])
