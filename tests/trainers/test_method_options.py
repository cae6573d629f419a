"""Options of the methods: critics, temperature, what of the denoising process is learned."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpolicy.trainers import (
    DiffPPOConfig,
    DiffWPOConfig,
    GaussianPPOConfig,
    GaussianWPOConfig,
    diffppo_module,
    diffwpo_module,
    gaussian_ppo_module,
    gaussian_wpo_module,
    prepare,
    train,
)

SmallConfig = Callable[..., DiffPPOConfig]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]
CPU = torch.device("cpu")
WPO: dict[type[Any], Any] = {
    DiffWPOConfig: diffwpo_module,
    GaussianWPOConfig: gaussian_wpo_module,
}
BOTH_WPO = pytest.mark.parametrize("config_class", list(WPO))


@pytest.fixture
def small(small_config: SmallConfig) -> Callable[..., Any]:
    """Build a small configuration of any on-policy method; arguments replace defaults."""

    def build(config_class: type[Any], **options: Any) -> Any:
        names = {field.name for field in dataclasses.fields(config_class)}
        config = small_config(minibatch_size=32)
        common = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if field.name in names and getattr(config, field.name) != field.default
        }
        return config_class(**{**common, **options})

    return build


@pytest.fixture
def small_gaussian(small: Callable[..., Any]) -> Callable[..., GaussianPPOConfig]:
    return partial(small, GaussianPPOConfig)


def test_a_categorical_critic_is_trained(small_config: SmallConfig, read_run: ReadRun) -> None:
    run = prepare(small_config(value_support=(-5.0, 45.0, 26.0)), diffppo_module)
    critic = run.module.loss.critic_network
    assert critic.out_keys == ["state_value", "state_value_logits"]
    support = run.module.loss.value_support
    assert (support.edges[0], support.edges[-1], support.bins) == (-5, 45, 26)
    weights = torch.nn.utils.parameters_to_vector(critic.parameters()).clone()
    assert train(run)
    assert not torch.equal(torch.nn.utils.parameters_to_vector(critic.parameters()), weights)
    results, rows = read_run(run.output)
    assert results["config"]["value_support"] == [-5.0, 45.0, 26.0]
    # Half the cross-entropy of 26 bins, which starts near that of equal probabilities.
    assert 0 < float(rows[0]["loss_critic"]) < 0.5 * 4


@pytest.mark.parametrize(("target", "rises"), [(1000.0, True), (-1000.0, False)])
def test_a_learned_temperature_moves_towards_its_target(
    small_config: SmallConfig, read_run: ReadRun, target: float, rises: bool
) -> None:
    options: dict[str, Any] = {"temperature": 0.01, "target_entropy": target}
    run = prepare(small_config(**options), diffppo_module)
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
    resumed = prepare(small_config(**options, resume=str(last), total_frames=384), diffppo_module)
    assert train(resumed)
    _, rows = read_run(run.output)
    later = float(rows[-1]["alpha"])
    assert (later > trained) == rises or later == pytest.approx(trained, rel=0.01)
    with pytest.raises(ValueError, match=r"--target-entropy .* cannot change to None"):
        prepare(small_config(resume=str(last), total_frames=999), diffppo_module)


def test_a_fixed_temperature_stays(small_config: SmallConfig, read_run: ReadRun) -> None:
    run = prepare(small_config(temperature=0.01), diffppo_module)
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
        diffppo_module(small_config(**options), CPU).loss,
        gaussian_ppo_module(small_gaussian(**options), CPU).loss,
    ]
    for loss in losses:
        assert loss.loss_critic_type == loss_critic_type
        found = None if loss.clip_value is None else float(loss.clip_value)
        assert found == pytest.approx(clip_value)


def test_clipped_values_change_the_training_of_both_methods(
    small_gaussian: Callable[..., GaussianPPOConfig], small_config: SmallConfig, tmp_path: Path
) -> None:
    for name, build, make_module in (
        ("diffppo", small_config, diffppo_module),
        ("gaussian", small_gaussian, gaussian_ppo_module),
    ):
        critics = []
        for clip_value in (None, 1e-3):
            output = str(tmp_path / name / str(clip_value))
            config: Any = build(clip_value=clip_value, output=output, total_frames=128, lr=0.01)
            run = prepare(config, make_module)
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
    run = prepare(small_gaussian(total_frames=128, clip_value=before), gaussian_ppo_module)
    assert train(run)
    last = str(run.output / "checkpoints" / "last.ckpt")
    resumed = prepare(
        small_gaussian(total_frames=256, clip_value=after, resume=last), gaussian_ppo_module
    )
    assert train(resumed)
    found = resumed.module.loss.clip_value
    assert (None if found is None else float(found)) == pytest.approx(after)
    assert resumed.module.frames == 256


@pytest.mark.parametrize("learn", [True, False])
def test_step_size_and_friction_are_learned_or_not(small_config: SmallConfig, learn: bool) -> None:
    config = small_config(
        learn_step_size=learn,
        learn_friction=not learn,
        step_size_per_step=True,
        temperature=0.1,
    )
    run = prepare(config, diffppo_module)
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
    process = diffppo_module(small_config(), CPU).actor.process
    assert process.raw_step_size.shape[0] == 1


# ---------------------------------------------------------------------------------------------
# WPO

WPO_COLUMNS = {
    "loss_actor",
    "loss_critic",
    "loss_multiplier",
    "loss_alpha",
    "kl",
    "trust_region_fraction",
    "multiplier",
    "entropy_bound",
    "alpha",
    "q_value",
    "target_value",
    "td_error",
    "grad_norm_actor",
    "grad_norm_critic",
    "lr",
    "frames",
}


def vector(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


@pytest.mark.parametrize("value_support", [None, (-200.0, 20.0, 23.0)])
@BOTH_WPO
def test_wpo_trains_all_of_its_parts(
    small: Callable[..., Any],
    read_run: ReadRun,
    config_class: type[Any],
    value_support: tuple[float, float, float] | None,
) -> None:
    config = small(config_class, env="Pendulum-v1", value_support=value_support)
    run = prepare(config, WPO[config_class])
    loss = run.module.loss
    parts = ("actor_network_params", "critic_network_params", "temperature", "multiplier")
    before = {part: vector(loss.get_submodule(part)) for part in parts}
    assert train(run)
    for part, parameters in before.items():
        assert not torch.equal(vector(loss.get_submodule(part)), parameters), part
    results, rows = read_run(run.output)
    assert results["method"] == config_class.method
    assert results["env_steps"] == 256
    # Two iterations of two epochs of 128 rows, or 256 where chains have two steps.
    rows_each = 128 * getattr(config, "denoising_steps", 1)
    assert results["gradient_steps"] == 2 * 2 * rows_each // 32
    own = {"step_size_mean", "friction"} if config_class is DiffWPOConfig else {"policy_std"}
    categorical = set() if value_support is None else {"value_clip_fraction"}
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in WPO_COLUMNS | own | categorical), row
        assert float(row["kl"]) >= 0
        assert float(row["multiplier"]) > 0


@BOTH_WPO
def test_a_wpo_run_goes_on_where_it_was(
    small: Callable[..., Any], read_run: ReadRun, config_class: type[Any]
) -> None:
    run = prepare(small(config_class), WPO[config_class])
    assert train(run)
    last = str(run.output / "checkpoints" / "last.ckpt")
    more = {"resume": last, "total_frames": 384}
    changed: dict[str, Any]
    for changed in ({"initial_multiplier": 9.0}, {"temperature": 9.0}, {"num_critics": 3}):
        (flag,) = changed
        with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} .* cannot change"):
            prepare(small(config_class, **more, **changed), WPO[config_class])
    # Nothing moves, so the run shows what it has loaded.
    resumed = prepare(small(config_class, **more, lr=1e-30), WPO[config_class])
    assert train(resumed)
    before, after = (dict(r.module.loss.named_parameters()) for r in (run, resumed))
    for name, parameter in before.items():
        torch.testing.assert_close(after[name], parameter, msg=name)
    _, rows = read_run(run.output)
    assert [int(row["frames"]) for row in rows] == [128, 256, 384]
    assert float(rows[-1]["alpha"]) == pytest.approx(float(run.module.loss.temperature()))


@BOTH_WPO
def test_wpo_options_reach_loss_and_networks(
    small: Callable[..., Any], config_class: type[Any]
) -> None:
    config = small(
        config_class,
        env="HalfCheetah-v5",
        temperature=0.5,
        target_entropy=-3.0,
        kl_bound=0.1,
        initial_multiplier=0.7,
        kl_samples=4,
        precondition=True,
        value_support=(-5.0, 45.0, 26.0),
        num_critics=3,
        critic_hidden_size=24,
        critic_normalization="layer",
        critic_reduction="min",
        loss_critic_type="smooth_l1",
        critic_coeff=0.25,
        gamma=0.9,
        lmbda=0.8,
    )
    loss = WPO[config_class](config, CPU).loss
    assert float(loss.temperature()) == pytest.approx(0.5)
    # Given for each of the six action dimensions.
    assert loss.temperature.target_entropy == -18
    assert (loss.multiplier.bound, float(loss.multiplier())) == pytest.approx((0.1, 0.7))
    assert (loss.kl_samples, loss.precondition) == (4, True)
    support = loss.value_support
    assert (support.edges[0], support.edges[-1], support.bins) == (-5, 45, 26)
    assert (loss.critic_reduction, loss.loss_critic_type) == ("min", "smooth_l1")
    assert float(loss.critic_coeff) == 0.25
    estimator = loss.value_estimator
    assert (float(estimator.gamma), float(estimator.lmbda)) == pytest.approx((0.9, 0.8))
    assert estimator.critic_reduction == "min"
    weights = [p for name, p in loss.critic_network_params.named_parameters() if p.ndim == 3]
    assert {weight.shape[0] for weight in weights} == {3}
    assert 24 in {weight.shape[-1] for weight in weights}
    if config_class is GaussianWPOConfig:
        assert loss.denoising_steps == 1


def test_diffwpo_options_reach_chain_and_loss(small: Callable[..., Any]) -> None:
    config = small(DiffWPOConfig, denoising_steps=3, discount_mode="denoising_step", prior_std=0.7)
    module = diffwpo_module(config, CPU)
    process = module.actor.process
    assert module.loss.discount_mode == "denoising_step"
    assert module.loss.value_estimator.discount_mode == "denoising_step"
    assert float(process.prior_std) == pytest.approx(0.7)
    # One step size for each step, and a friction that stays.
    assert process.raw_step_size.shape[0] == 3
    assert process.raw_step_size.requires_grad
    assert not process.raw_friction.requires_grad


def test_the_initial_std_reaches_the_gaussian(small: Callable[..., Any]) -> None:
    actor = gaussian_wpo_module(small(GaussianWPOConfig, initial_std=0.4), CPU).actor
    assert actor.std.tolist() == pytest.approx([0.4])


def test_parts_of_wpo_have_their_own_learning_rates(small: Callable[..., Any]) -> None:
    still = {"temperature_lr_multiplier": 0.0, "multiplier_lr_multiplier": 0.0}
    run = prepare(small(DiffWPOConfig, **still, process_lr_multiplier=0.0), diffwpo_module)
    loss = run.module.loss
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    assert train(run)
    kept = {name for name, p in loss.named_parameters() if torch.equal(p, before[name])}
    process = {name for name in before if ".process." in name}
    assert kept == {"temperature.log_alpha", "multiplier.log_multiplier", *process}


@pytest.mark.parametrize(("target", "rises"), [(1000.0, True), (-1000.0, False)])
def test_the_temperature_of_wpo_moves_towards_its_target(
    small: Callable[..., Any], read_run: ReadRun, target: float, rises: bool
) -> None:
    run = prepare(small(GaussianWPOConfig, target_entropy=target), gaussian_wpo_module)
    assert train(run)
    _, rows = read_run(run.output)
    alphas = [0.01, *(float(row["alpha"]) for row in rows)]
    assert alphas == sorted(alphas, reverse=not rises)
    assert alphas[0] != alphas[-1]


def test_the_temperature_of_wpo_can_be_fixed(small: Callable[..., Any], read_run: ReadRun) -> None:
    run = prepare(small(DiffWPOConfig, learn_temperature=False, temperature=0.3), diffwpo_module)
    assert train(run)
    _, rows = read_run(run.output)
    assert [float(row["alpha"]) for row in rows] == pytest.approx([0.3, 0.3])
    assert "loss_alpha" not in rows[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "--temperature must be greater than 0, got 0.0."),
        ({"target_entropy": math.inf}, "--target-entropy must be a finite number, got inf."),
        ({"kl_bound": 0.0}, "--kl-bound must be greater than 0, got 0.0."),
        ({"initial_multiplier": -1.0}, "--initial-multiplier must be greater than 0, got -1.0."),
        ({"kl_samples": 0}, "--kl-samples must be at least 1, got 0."),
        ({"num_critics": 0}, "--num-critics must be at least 1, got 0."),
        (
            {"critic_normalization": "batch"},
            "--critic-normalization must be one of layer, none, got 'batch'.",
        ),
        (
            {"value_support": (1.0, 0.0, 9.0)},
            "--value-support must be a smaller and a greater number and a whole number of bins "
            "from 2 on, got 1.0 0.0 9.0.",
        ),
    ],
)
@BOTH_WPO
def test_bad_options_of_wpo_are_refused_in_one_sentence(
    config_class: type[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="--") as raised:
        config_class(**options)
    assert str(raised.value) == message


def test_rows_of_a_wpo_rollout_are_counted_in_words() -> None:
    shape = {"num_envs": 2, "rollout_steps": 3, "minibatch_size": 25}
    words = r"at most 6, the rows of a rollout \(--num-envs 2 times --rollout-steps 3\), got 25"
    with pytest.raises(ValueError, match=words):
        GaussianWPOConfig(**shape)
    with pytest.raises(ValueError, match=r"at most 24, .* times --denoising-steps 4"):
        DiffWPOConfig(**shape, denoising_steps=4)
