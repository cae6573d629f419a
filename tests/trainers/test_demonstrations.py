"""Demonstrations in every update: shares, the unit of rewards, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from data_sets import random_transitions
from small_methods import small_config
from tensordict import TensorDictBase

from diffpolicy.errors import ArgumentError
from diffpolicy.policy.demonstrations import save_demonstrations
from diffpolicy.trainers import prepare, train

METHODS = ["diffsac", "dipo"]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = random_transitions()
    data["next", "reward"] *= 100  # far from what the environment pays
    return save_demonstrations(data, tmp_path_factory.mktemp("data") / "demos")


def with_data(demos: Path, name: str = "dime", **options: Any) -> Any:
    return small_config(name, demonstrations=str(demos), **options)


@pytest.mark.parametrize("name", METHODS)
def test_every_update_has_its_share_in_the_unit_of_all(
    name: str, demos: Path, tmp_path: Path
) -> None:
    config = with_data(demos, name, demonstration_fraction=0.25, output=str(tmp_path / "run"))
    run = prepare(config)
    data, batches = run.module.demonstrations.rows, list[TensorDictBase]()
    step = run.module.updates.step

    def spied(batch: TensorDictBase, number: int, **options: Any) -> None:
        size = run.module.rewards.scale.size.float()
        batches.append(batch.clone().set("size", size.expand(len(batch), 1)))
        step(batch, number, **options)

    run.module.updates.step = spied
    assert train(run, progress_bar=False)
    assert len(batches) == 20
    for batch in batches:
        shown = batch[batch["demonstrated"].squeeze(-1)]
        assert len(shown) == 2  # a quarter of 8
        rows = [
            int((data["observation"] == seen).all(-1).nonzero()) for seen in shown["observation"]
        ]
        for key in ("action", ("next", "observation"), ("next", "terminated")):
            assert torch.equal(shown[key], data[rows][key])
        expected = data[rows]["next", "reward"] / shown["size"]
        torch.testing.assert_close(shown["next", "reward"], expected)
    # The size of returns counts those of the data from the start.
    assert float(batches[0]["size"][0]) > 100


def test_histories_and_chunks_are_made_of_demonstrations(demos: Path, tmp_path: Path) -> None:
    options = {"frame_stack": 2, "action_chunk": 2, "output": str(tmp_path / "run")}
    run = prepare(with_data(demos, "diffsac", **options))
    rows, steps = run.module.demonstrations
    assert (rows["observation"].shape, rows["action"].shape) == ((60, 6), (60, 2))
    assert (len(steps), int(steps["next", "done"].sum())) == (60, 3)
    batches, step = list[TensorDictBase](), run.module.updates.step

    def spied(batch: TensorDictBase, number: int, **options: Any) -> None:
        batches.append(batch.clone())
        step(batch, number, **options)

    run.module.updates.step = spied
    assert train(run, progress_bar=False)
    assert batches
    for batch in batches:
        shown = batch[batch["demonstrated"].squeeze(-1)]
        assert len(shown) == 4
        assert set(shown["steps_to_next_obs"].flatten().tolist()) <= {1, 2}
        for name in ("observation", "action"):
            assert all(bool((rows[name] == seen).all(-1).any()) for seen in shown[name])


def test_what_does_not_go_with_demonstrations_is_refused(demos: Path) -> None:
    for options, words in (
        ({"demonstration_fraction": 0.01}, "--demonstration-fraction 0.01 of --batch-size 8 is 0"),
        ({"prioritized_replay": True}, "does not go with --prioritized-replay"),
    ):
        with pytest.raises(ValueError, match=words):
            with_data(demos, **options)
    with pytest.raises(ValueError, match="is for --demonstrations"):
        small_config("dime", demonstration_fraction=0.5)


def test_data_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    good, output = random_transitions(), tmp_path / "run"
    nan = good["next", "reward"].clone().index_fill_(0, torch.tensor(3), torch.nan)
    wrong = {
        r"lacks \('next', 'observation'\), .* it holds action, next\.done": good.exclude(
            ("next", "observation")
        ),
        r"lacks \('next', 'done'\)": good.exclude(("next", "done")),
        r"has NaN or infinity in \('next', 'reward'\)": good.clone().set(("next", "reward"), nan),
        r"has 'observation' of the shape \[4\], the environment \[3\]": good.clone().set(
            "observation", torch.zeros(60, 4)
        ),
        r"100.0% of them outside of \[-2.0\] and \[2.0\]": good.clone().set(
            "action", torch.full((60, 1), 3.0)
        ),
    }
    for index, (words, data) in enumerate(wrong.items()):
        folder = save_demonstrations(data, tmp_path / f"data{index}")
        with pytest.raises(ArgumentError, match=f"demonstrations=.* {words}"):
            prepare(with_data(folder, output=str(output)))
    assert not output.exists()
