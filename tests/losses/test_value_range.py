"""The range of categorical critics without rewards: where it starts, and how it widens."""

import copy
import io
import warnings

import pytest
import torch
import torch.distributed as dist
from loss_builders import make_off_policy_networks, make_rollout
from tensordict import TensorDictBase
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from diffpolicy.networks import CategoricalSupport
from objectives import DIMELoss
from objectives import value_range as module
from objectives.value_range import ValueRange

GAMMA = 0.9


def make(atoms: int = 5) -> ValueRange:
    return ValueRange(CategoricalSupport(-1.0, 1.0, atoms), "auto")


def start(zeros: int = 8) -> ValueRange:
    value_range = make()
    with pytest.warns(UserWarning, match=rf"none of {zeros} rewards.*start at \+-20, as for"):
        assert value_range.derive(torch.zeros(zeros, 1), GAMMA) == pytest.approx(20)
    return value_range


def limit(value_range: ValueRange) -> float:
    assert value_range.support is not None
    atoms = value_range.support.atoms
    torch.testing.assert_close(atoms, -atoms.flip(0))
    return float(atoms[-1])


def feed(value_range: ValueRange, *rewards: float) -> None:
    value_range.prepare(torch.tensor(rewards).unsqueeze(-1), torch.tensor(GAMMA))


def test_without_rewards_it_starts_as_for_rewards_up_to_one_and_widens() -> None:
    value_range = start()
    expected = [((0.0, 0.0), 20.0), ((0.5, -1.0), 20.0), ((0.0, -3.0), 60.0), ((1.0, 2.0), 60.0)]
    for rewards, wanted in expected:
        feed(value_range, *rewards)
        assert limit(value_range) == pytest.approx(wanted)
    assert value_range.support is not None
    atoms = value_range.support.atoms
    torch.testing.assert_close(atoms, torch.linspace(-60, 60, 5))


def test_the_first_batch_may_be_without_rewards_too() -> None:
    value_range = make()
    with pytest.warns(UserWarning, match="none of 2 rewards differs from zero") as seen:
        feed(value_range, 0.0, 0.0)
    assert len(seen) == 1
    feed(value_range, 4.0)
    assert limit(value_range) == pytest.approx(80)


def test_a_range_from_rewards_stays() -> None:
    value_range = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value_range.derive(torch.tensor([[0.5], [-2.0]]), GAMMA)
        feed(value_range, 100.0)
    assert limit(value_range) == pytest.approx(40)
    assert not bool(value_range.widens)


def test_the_margin_is_kept_for_widening() -> None:
    value_range = make()
    with pytest.warns(UserWarning, match=r"\+-40"):
        value_range.derive(torch.zeros(3, 1), GAMMA, margin=4.0)
    feed(value_range, 2.0)
    assert limit(value_range) == pytest.approx(80)


def test_a_loaded_state_goes_on_where_it_was() -> None:
    """Also in a range that was built for something else, as a resumed run builds it."""
    value_range = start()
    feed(value_range, 3.0)
    assert value_range.support is not None
    state = copy.deepcopy(value_range.state_dict())
    atoms = copy.deepcopy(value_range.support.state_dict())
    for given in ("auto", None):
        resumed = ValueRange(CategoricalSupport(-1.0, 1.0, 5), given)
        assert resumed.support is not None
        resumed.support.load_state_dict(atoms)
        resumed.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            feed(resumed, 1.0)
            assert limit(resumed) == pytest.approx(60)
            feed(resumed, 5.0)
        assert limit(resumed) == pytest.approx(100)


def test_ranks_widen_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rewards a rank sees itself, the largest of all ranks counts."""
    largest = iter([0.0, 7.0])

    def of_all_ranks(value: Tensor) -> Tensor:
        return value.new_tensor(next(largest))

    monkeypatch.setattr(module, "max_over_ranks", of_all_ranks)
    value_range = start()
    feed(value_range, 0.0)
    assert limit(value_range) == pytest.approx(140)


def test_one_rank_is_asked_through_the_process_group() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        value_range = start()
        feed(value_range, 3.0)
        assert limit(value_range) == pytest.approx(60)
    finally:
        dist.destroy_process_group()


def make_loss() -> tuple[DIMELoss, TensorDictBase]:
    torch.manual_seed(0)
    actor, critic = make_off_policy_networks(support=CategoricalSupport(-1.0, 1.0, 11))
    loss = DIMELoss(actor, critic, temperature=0.3, value_range="auto")
    loss.make_value_estimator(gamma=GAMMA)
    batch = make_rollout(actor, (16,))
    batch.names = None
    return loss, batch


def test_a_loss_learns_before_and_after_the_first_reward() -> None:
    loss, batch = make_loss()
    nothing = batch.clone()
    nothing["next", "reward"].zero_()
    with pytest.warns(UserWarning, match="none of 16 rewards"):
        assert bool(loss(nothing)["loss_qvalue"].isfinite())
    batch["next", "reward"] *= 5 / batch["next", "reward"].abs().max()
    loss(batch)
    assert float(loss.value_support.atoms[-1]) == pytest.approx(100, rel=1e-5)
    stream = io.BytesIO()
    torch.save(loss.state_dict(), stream)
    stream.seek(0)
    other, _ = make_loss()
    other.load_state_dict(torch.load(stream))
    batch["next", "reward"] *= 2
    for each in (loss, other):
        torch.manual_seed(1)
        each(batch)
        assert float(each.value_support.atoms[-1]) == pytest.approx(200, rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt:FutureWarning")
def test_widening_compiles() -> None:
    torch._dynamo.reset()
    loss, batch = make_loss()
    with pytest.warns(UserWarning, match="none of 16 rewards"):
        loss.derive_value_range(batch.clone().set(("next", "reward"), torch.zeros(16, 1)))
    compiled = torch.compile(loss.qvalue_loss, fullgraph=True, backend="eager")
    bound = float(batch["next", "reward"].abs().max())
    compiled(batch)
    assert float(loss.value_support.atoms[-1]) == pytest.approx(max(2 * bound, 2) / (1 - GAMMA))
    batch["next", "reward"] *= 10
    compiled(batch)
    assert float(loss.value_support.atoms[-1]) == pytest.approx(20 * bound / (1 - GAMMA))
