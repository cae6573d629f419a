"""Options of the methods: critics, temperature, what of the denoising process is learned."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpolicy.trainers import (
    METHODS,
    DiffPPOConfig,
    GaussianPPOConfig,
    prepare,
    train,
)

SmallConfig = Callable[..., DiffPPOConfig]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]
CPU = torch.device("cpu")


@pytest.fixture
def small_gaussian(small_config: SmallConfig) -> Callable[..., GaussianPPOConfig]:
    """Build a small configuration of Gaussian PPO; arguments replace defaults."""

    def build(**options: Any) -> GaussianPPOConfig:
        names = {field.name for field in dataclasses.fields(GaussianPPOConfig)}
        config = small_config(minibatch_size=32)
        common = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if field.name in names and getattr(config, field.name) != field.default
        }
        return GaussianPPOConfig(**{**common, **options})

    return build


def test_a_categorical_critic_is_trained(small_config: SmallConfig, read_run: ReadRun) -> None:
    run = prepare(small_config(critic_head="hl_gauss", value_range=(-5.0, 45.0), bins=26))
    critic = run.module.loss.critic_network
    assert critic.out_keys == ["state_value", "state_value_logits"]
    support = run.module.loss.value_support
    assert (support.edges[0], support.edges[-1], support.bins) == (-5, 45, 26)
    weights = torch.nn.utils.parameters_to_vector(critic.parameters()).clone()
    assert train(run)
    assert not torch.equal(torch.nn.utils.parameters_to_vector(critic.parameters()), weights)
    results, rows = read_run(run.output)
    assert results["config"]["value_range"] == [-5.0, 45.0]
    # Half the cross-entropy of 26 bins, which starts near that of equal probabilities.
    assert 0 < float(rows[0]["loss_critic"]) < 0.5 * 4


@pytest.mark.parametrize(("target", "rises"), [(1000.0, True), (-1000.0, False)])
def test_a_learned_temperature_moves_towards_its_target(
    small_config: SmallConfig, read_run: ReadRun, target: float, rises: bool
) -> None:
    options: dict[str, Any] = {"temperature": 0.01, "learn_temperature": True}
    options["target_entropy"] = target
    run = prepare(small_config(**options))
    assert float(run.module.loss.temperature()) == pytest.approx(0.01)
    assert train(run)
    _, rows = read_run(run.output)
    alphas = [0.01, *(float(row["alpha"]) for row in rows)]
    assert alphas == sorted(alphas, reverse=not rises)
    assert alphas[0] != alphas[-1]
    assert all("loss_alpha" in row for row in rows)
    last = run.output / "checkpoints" / "last.ckpt"
    trained = float(run.module.loss.temperature())
    # Continued, it goes on from where it was; the target belongs to the run.
    resumed = prepare(small_config(**options, resume=str(last), total_frames=384))
    assert train(resumed)
    _, rows = read_run(run.output)
    later = float(rows[-1]["alpha"])
    assert (later > trained) == rises or later == pytest.approx(trained, rel=0.01)
    with pytest.raises(ValueError, match=r"--learn-temperature True, which cannot change to False"):
        prepare(small_config(resume=str(last), total_frames=999))


def test_a_fixed_temperature_stays(small_config: SmallConfig, read_run: ReadRun) -> None:
    run = prepare(small_config(temperature=0.01))
    assert train(run)
    _, rows = read_run(run.output)
    assert [float(row["alpha"]) for row in rows] == pytest.approx([0.01, 0.01])
    assert "loss_alpha" not in rows[0]


@pytest.mark.parametrize("loss_critic_type", ["smooth_l1", "l2", "l1"])
@pytest.mark.parametrize("clip_value", [None, 0.3])
def test_critic_options_reach_both_losses(
    small_gaussian: Callable[..., GaussianPPOConfig],
    small_config: SmallConfig,
    loss_critic_type: str,
    clip_value: float | None,
) -> None:
    options = {"loss_critic_type": loss_critic_type, "clip_value": clip_value}
    losses = [
        METHODS["diffppo"].module(small_config(**options), CPU).loss,
        METHODS["gaussian_ppo"].module(small_gaussian(**options), CPU).loss,
    ]
    for loss in losses:
        assert loss.loss_critic_type == loss_critic_type
        found = None if loss.clip_value is None else float(loss.clip_value)
        assert found == pytest.approx(clip_value)


def test_clipped_values_change_the_training_of_both_methods(
    small_gaussian: Callable[..., GaussianPPOConfig], small_config: SmallConfig, tmp_path: Path
) -> None:
    for name, build in (("diffppo", small_config), ("gaussian", small_gaussian)):
        critics = []
        for clip_value in (None, 1e-3):
            output = str(tmp_path / name / str(clip_value))
            config: Any = build(clip_value=clip_value, output=output, total_frames=128, lr=0.01)
            run = prepare(config)
            assert train(run)
            critic = run.module.loss.critic_network
            critics.append(torch.nn.utils.parameters_to_vector(critic.parameters()))
        assert not torch.equal(*critics), name


@pytest.mark.parametrize(("before", "after"), [(None, 0.3), (0.3, None), (0.3, 0.2)])
def test_a_run_may_be_continued_with_another_clip_value(
    small_gaussian: Callable[..., GaussianPPOConfig],
    before: float | None,
    after: float | None,
) -> None:
    # In TorchRL's loss the clip range is part of the state.
    run = prepare(small_gaussian(total_frames=128, clip_value=before))
    assert train(run)
    last = str(run.output / "checkpoints" / "last.ckpt")
    resumed = prepare(
        small_gaussian(total_frames=256, clip_value=after, resume=last),
        METHODS["gaussian_ppo"].module,
    )
    assert train(resumed)
    found = resumed.module.loss.clip_value
    assert (None if found is None else float(found)) == pytest.approx(after)
    assert resumed.module.progress.frames == 256


@pytest.mark.parametrize("learn", [True, False])
def test_step_size_and_friction_are_learned_or_not(small_config: SmallConfig, learn: bool) -> None:
    config = small_config(
        learn_step_size=learn,
        learn_friction=not learn,
        step_size_per_step=True,
        temperature=0.1,
    )
    run = prepare(config)
    process = run.module.actor.process
    assert process.raw_step_size.shape[0] == config.denoising_steps
    sizes, friction = (p.detach().clone() for p in (process.raw_step_size, process.raw_friction))
    assert train(run)
    assert torch.equal(process.raw_step_size, sizes) == (not learn)
    assert torch.equal(process.raw_friction, friction) == learn
    if learn:
        change = process.raw_step_size - sizes
        assert not torch.equal(change[0], change[1])


def test_one_factor_for_all_steps_by_default(small_config: SmallConfig) -> None:
    process = METHODS["diffppo"].module(small_config(), CPU).actor.process
    assert process.raw_step_size.shape[0] == 1
