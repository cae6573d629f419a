"""No method depends on the unit of rewards: they are divided by the size of returns."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from small_methods import EACH, small_config
from torch import Tensor

from diffpolicy.trainers import RLModule, prepare, train


class _InUnits(gym.RewardWrapper[Any, Any]):
    """Rewards times a constant."""

    unit = 1.0

    def reward(self, reward: Any) -> Any:
        return reward * self.unit


class Thousandths(_InUnits):
    unit = 0.001


class Kibi(_InUnits):
    unit = 1024.0


class Nothing(_InUnits):
    unit = 0.0


def trained(name: str, output: Path, wrapper: type[_InUnits], **options: Any) -> RLModule:
    config = small_config(
        name, env_wrapper=(wrapper,), output=str(output / wrapper.__name__), **options
    )
    run = prepare(config)
    assert train(run)
    return run.module


def policy(module: RLModule) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.actor.named_parameters()}


@pytest.mark.parametrize("name", EACH)
def test_the_policy_is_the_same_in_any_unit(name: str, tmp_path: Path) -> None:
    one, kibi, thousandths = (
        trained(name, tmp_path, unit) for unit in (_InUnits, Kibi, Thousandths)
    )
    expected = policy(one)
    untrained = policy(prepare(small_config(name, output=str(tmp_path / "untrained"))).module)
    assert any(not torch.equal(expected[name], untrained[name]) for name in expected)
    assert all(torch.equal(value, expected[key]) for key, value in policy(kibi).items())
    torch.testing.assert_close(policy(thousandths), expected, rtol=1e-3, atol=1e-5)
    sizes = [module.rewards.metrics()["return_scale"] for module in (one, kibi, thousandths)]
    assert sizes[0] > 0
    assert sizes == pytest.approx([sizes[0], 1024 * sizes[0], sizes[0] / 1000])
    with (tmp_path / "Kibi" / "metrics.csv").open() as file:
        assert "return_scale" in file.readline().strip().split(",")


def test_rewards_can_be_left_as_they_are(tmp_path: Path) -> None:
    options = {"normalize_rewards": False, "value_range": (-1000.0, 1000.0)}
    raw, kibi = (policy(trained("dime", tmp_path, unit, **options)) for unit in (_InUnits, Kibi))
    assert any(not torch.equal(raw[key], kibi[key]) for key in raw)


@pytest.mark.parametrize("name", ["dime", "diffwpo"])
def test_a_temperature_waits_for_the_first_reward(name: str, tmp_path: Path) -> None:
    learned = {"learn_temperature": True}
    config = small_config(name, output=str(tmp_path / "start"), **learned)
    start = prepare(config).module.loss.temperature()
    waiting, moving = (
        trained(name, tmp_path, unit, **learned).loss.temperature() for unit in (Nothing, _InUnits)
    )
    assert torch.equal(waiting, start)
    assert not torch.equal(moving, start)


def test_replayed_rewards_stay_raw(tmp_path: Path) -> None:
    module = trained("dime", tmp_path, Kibi)
    assert float(module.stream.buffer[:]["next", "reward"].min()) < -100
