"""DiffWPO and Gaussian WPO in the on-policy Lightning module: training, resuming, options."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpolicy.trainers import (
    METHODS,
    DiffPPOConfig,
    DiffWPOConfig,
    GaussianWPOConfig,
    prepare,
    train,
)
from diffpolicy.trainers.run.parser import Parser

SmallConfig = Callable[..., DiffPPOConfig]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]
CPU = torch.device("cpu")
BOTH_WPO = pytest.mark.parametrize("config_class", [DiffWPOConfig, GaussianWPOConfig])
WPO_COLUMNS = {
    "loss_actor",
    "loss_qvalue",
    "loss_multiplier",
    "loss_alpha",
    "kl",
    "trust_region_fraction",
    "multiplier",
    "entropy",
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
        if "learn_temperature" in names:
            # DiffWPO's is fixed by default.
            common["learn_temperature"] = True
        return config_class(**{**common, **options})

    return build


def vector(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


@pytest.mark.parametrize("head", ["scalar", "hl_gauss"])
@BOTH_WPO
def test_wpo_trains_all_of_its_parts(
    small: Callable[..., Any],
    read_run: ReadRun,
    config_class: type[Any],
    head: str,
) -> None:
    bins = {} if head == "scalar" else {"value_range": (-200.0, 20.0), "bins": 23}
    config = small(config_class, env="Pendulum-v1", critic_head=head, **bins)
    run = prepare(config)
    loss = run.module.loss
    parts = ("actor_network_params", "qvalue_network_params", "temperature", "multiplier")
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
    categorical = set() if head == "scalar" else {"value_clip_fraction"}
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in WPO_COLUMNS | own | categorical), row
        assert float(row["kl"]) >= 0
        assert float(row["multiplier"]) > 0


@BOTH_WPO
def test_a_wpo_run_goes_on_where_it_was(
    small: Callable[..., Any], read_run: ReadRun, config_class: type[Any]
) -> None:
    run = prepare(small(config_class))
    assert train(run)
    last = str(run.output / "checkpoints" / "last.ckpt")
    more = {"resume": last, "total_frames": 384}
    changed: dict[str, Any]
    for changed in ({"initial_multiplier": 9.0}, {"temperature": 9.0}, {"num_qvalue_nets": 3}):
        (flag,) = changed
        with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} .* cannot change"):
            prepare(small(config_class, **more, **changed))
    # Nothing moves, so the run shows what it has loaded.
    resumed = prepare(small(config_class, **more, lr=1e-30))
    assert train(resumed)
    before, after = (dict(r.module.loss.named_parameters()) for r in (run, resumed))
    for name, parameter in before.items():
        torch.testing.assert_close(after[name], parameter, msg=name)
    _, rows = read_run(run.output)
    assert [int(row["frames"]) for row in rows] == [128, 256, 384]
    assert float(rows[-1]["alpha"]) == pytest.approx(float(run.module.loss.temperature()))


@BOTH_WPO
def test_the_limit_of_gradient_norms_says_that_there_are_two(config_class: type[Any]) -> None:
    assert config_class().max_grad_norm == DiffPPOConfig().max_grad_norm
    text = " ".join(Parser(config_class).format_help().split())
    assert "gradient norm of the policy, and separately of that of the critics" in text


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
        critic_head="hl_gauss",
        value_range=(-5.0, 45.0),
        bins=26,
        num_qvalue_nets=3,
        critic_hidden_sizes=(24, 24),
        critic_normalization="layer",
        critic_reduction="min",
        loss_critic_type="smooth_l1",
        critic_coeff=0.25,
        gamma=0.9,
        lmbda=0.8,
    )
    loss = METHODS[config.method].module(config, CPU).loss
    assert float(loss.temperature()) == pytest.approx(0.5)
    # Given for each of the six action dimensions.
    assert loss.temperature.target_entropy == -18
    assert (loss.multiplier.bound, float(loss.multiplier())) == pytest.approx((0.1, 0.7))
    assert (loss.wasserstein.kl_samples, loss.wasserstein.precondition) == (4, True)
    support = loss.value_support
    assert (support.edges[0], support.edges[-1], support.bins) == (-5, 45, 26)
    assert (loss.critic.reduction, loss.critic.loss_function) == ("min", "smooth_l1")
    assert float(loss.critic_coeff) == 0.25
    estimator = loss.value_estimator
    assert (float(estimator.gamma), float(estimator.lmbda)) == pytest.approx((0.9, 0.8))
    assert estimator.critic.reduction == "min"
    weights = [p for name, p in loss.qvalue_network_params.named_parameters() if p.ndim == 3]
    assert {weight.shape[0] for weight in weights} == {3}
    assert 24 in {weight.shape[-1] for weight in weights}
    if config_class is GaussianWPOConfig:
        assert loss.mdp.denoising_steps == 1


def test_diffwpo_options_reach_chain_and_loss(small: Callable[..., Any]) -> None:
    config = small(DiffWPOConfig, denoising_steps=3, discount_mode="denoising_step", prior_std=0.7)
    module = METHODS["diffwpo"].module(config, CPU)
    process = module.actor.process
    assert module.loss.replayed.discount_mode == "denoising_step"
    assert module.loss.value_estimator.discount_mode == "denoising_step"
    assert float(process.prior_std) == pytest.approx(0.7)
    # One step size for each step, and a friction that stays.
    assert process.raw_step_size.shape[0] == 3
    assert process.raw_step_size.requires_grad
    assert not process.raw_friction.requires_grad


def test_the_initial_std_reaches_the_gaussian(small: Callable[..., Any]) -> None:
    actor = METHODS["gaussian_wpo"].module(small(GaussianWPOConfig, initial_std=0.4), CPU).actor
    assert actor.std.tolist() == pytest.approx([0.4])


def test_parts_of_wpo_have_their_own_learning_rates(small: Callable[..., Any]) -> None:
    still = {"lr_temperature": 0.0, "lr_multiplier": 0.0, "lr_process": 0.0}
    run = prepare(small(DiffWPOConfig, **still))
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
    run = prepare(small(GaussianWPOConfig, target_entropy=target))
    assert train(run)
    _, rows = read_run(run.output)
    alphas = [0.001, *(float(row["alpha"]) for row in rows)]
    assert alphas == sorted(alphas, reverse=not rises)
    assert alphas[0] != alphas[-1]


def test_the_temperature_of_wpo_can_be_fixed(small: Callable[..., Any], read_run: ReadRun) -> None:
    run = prepare(small(DiffWPOConfig, learn_temperature=False, temperature=0.3))
    assert train(run)
    _, rows = read_run(run.output)
    assert [float(row["alpha"]) for row in rows] == pytest.approx([0.3, 0.3])
    assert "loss_alpha" not in rows[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"temperature": 0.0, "learn_temperature": True},
            "--temperature must be greater than 0 to be learned, got 0.0; give "
            "--no-learn-temperature to fix it.",
        ),
        ({"target_entropy": math.inf}, "--target-entropy must be a finite number, got inf."),
        ({"kl_bound": 0.0}, "--kl-bound must be greater than 0, got 0.0."),
        ({"initial_multiplier": -1.0}, "--initial-multiplier must be greater than 0, got -1.0."),
        ({"kl_samples": 0}, "--kl-samples must be at least 1, got 0."),
        ({"num_qvalue_nets": 0}, "--num-qvalue-nets must be at least 1, got 0."),
        (
            {"critic_normalization": "batch"},
            "--critic-normalization must be one of layer, none, got 'batch'.",
        ),
        (
            {"critic_head": "hl_gauss", "value_range": (1.0, 0.0)},
            "--value-range must be a smaller and a greater number, got 1 0.",
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
