"""The running size of the discounted return, against a loop over every step."""

import itertools

import pytest
import torch
from torch import Tensor

from diffpolicy.networks import ReturnScale


def rollout(seed: int, steps: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reward = 3 * torch.randn(4, steps, 1, generator=generator) + 1
    return reward, torch.rand(4, steps, 1, generator=generator) < 0.1


def expected_size(reward: Tensor, done: Tensor, gamma: float, limit: float) -> float:
    returns = []
    for rewards, ends in zip(reward.double().tolist(), done.tolist(), strict=True):
        value = 0.0
        for (now,), (end,) in zip(rewards, ends, strict=True):
            value = now + gamma * value
            returns.append(value)
            value = 0.0 if end else value
    seen = torch.tensor(returns, dtype=torch.float64)
    return max(float(seen.std(correction=0)), float(seen.abs().max()) / limit)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("limit", [1.0, 5.0, 100.0])
def test_it_is_the_larger_of_deviation_and_limited_magnitude(gamma: float, limit: float) -> None:
    reward, done = rollout(0)
    scale = ReturnScale(gamma, limit=limit)
    scale.add(reward, done)
    scale.update()
    assert float(scale.size) == pytest.approx(expected_size(reward, done, gamma, limit))
    torch.testing.assert_close(scale(reward), reward / float(scale.size))


def test_parts_of_episodes_count_as_the_whole() -> None:
    reward, done = rollout(1)
    whole, parts = ReturnScale(0.97), ReturnScale(0.97)
    whole.add(reward, done)
    whole.update()
    for start, end in itertools.pairwise((0, 1, 2, 15, 30)):
        parts.add(reward[:, start:end], done[:, start:end])
        if start != 1:
            parts.update()
    torch.testing.assert_close(parts.size, whole.size)
    assert parts.running is not None
    assert whole.running is not None
    torch.testing.assert_close(parts.running, whole.running)


def test_rewards_of_chunks_are_discounted_by_their_length() -> None:
    gamma = 0.9
    reward, done = torch.tensor([[[1.0], [2.0]]]), torch.zeros(1, 2, 1, dtype=torch.bool)
    scale = ReturnScale(gamma)
    scale.add(reward, done, steps=torch.tensor([[[3], [2]]]))
    assert scale.running is not None
    assert scale.running.tolist() == pytest.approx([2.0 + gamma**2])


def test_nothing_is_known_before_the_first_reward() -> None:
    scale = ReturnScale(0.99)
    done = torch.zeros(2, 5, 1, dtype=torch.bool)
    scale.add(torch.zeros(2, 5, 1), done)
    scale.update()
    assert scale(torch.tensor([7.0])).tolist() == [0.0]
    scale.add(torch.full((2, 5, 1), 1e-30), done)
    scale.update()
    assert 0 < float(scale(torch.tensor([1e-30]))) <= scale.limit


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**10, 2.0**40])
def test_scaled_rewards_do_not_depend_on_the_unit(factor: float) -> None:
    scaled = []
    for unit in (1.0, factor):
        scale = ReturnScale(0.99)
        for seed in range(3):
            reward, done = rollout(seed)
            scale.add(reward * unit, done)
            scale.update()
            scaled.append(scale(reward * unit))
    for before, after in zip(scaled[:3], scaled[3:], strict=True):
        assert torch.equal(before, after)


def test_the_state_goes_on_where_it_was() -> None:
    scale, other = ReturnScale(0.99), ReturnScale(0.99)
    scale.add(*rollout(0))
    scale.update()
    other.load_state_dict(scale.state_dict())
    other.running = scale.running
    for one in (scale, other):
        one.add(*rollout(1))
        one.update()
    assert torch.equal(scale.size, other.size)


def test_without_new_returns_nothing_changes() -> None:
    scale = ReturnScale(0.99)
    scale.update()
    assert float(scale.size) == 0
    scale.add(*rollout(0))
    scale.update()
    size = scale.size.clone()
    scale.update()
    assert torch.equal(scale.size, size)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma must be between 0 and 1, got 1\.5"):
        ReturnScale(1.5)
    with pytest.raises(ValueError, match=r"limit must be greater than 0, got 0"):
        ReturnScale(0.9, limit=0)
    scale = ReturnScale(0.9)
    scale.add(*rollout(0))
    reward, done = rollout(0)
    with pytest.raises(ValueError, match="that of 4 environments, got 3"):
        scale.add(reward[:3], done[:3])
