import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from diffpolicy.trainers import DiffPPOConfig, GaussianPPOConfig, PPOConfig
from diffpolicy.trainers.config.options import changed, make_parser, option, parse_options

CONFIGS = [DiffPPOConfig, GaussianPPOConfig]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_field_is_a_flag_with_help(config_class: type[PPOConfig]) -> None:
    text = make_parser(config_class).format_help()
    for field in dataclasses.fields(config_class):
        assert "--" + field.name.replace("_", "-") in text
        assert field.metadata["help"]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_no_flags_give_the_defaults(config_class: type[PPOConfig]) -> None:
    given = parse_options(make_parser(config_class), [])
    assert given == {}
    assert config_class(**given) == config_class()


def test_flags_reach_the_configuration() -> None:
    argv = "--total-frames 7 --lr 0.5 --env Hopper-v5 --compile --no-normalize-observations"
    argv += " --logger csv --logger wandb --target-kl 0.1 --denoising-steps 3"
    argv += " --advantage-normalization center --value-support -10 20 31 --target-entropy -5"
    argv += " --temperature 0.1 --observation-keys a --observation-keys b.c --no-learn-friction"
    argv += " --loss-critic-type l2"
    config = DiffPPOConfig(**parse_options(make_parser(DiffPPOConfig), argv.split()))
    assert config == DiffPPOConfig(
        total_frames=7,
        lr=0.5,
        env="Hopper-v5",
        compile=True,
        normalize_observations=False,
        logger=("csv", "wandb"),
        advantage_normalization="center",
        target_kl=0.1,
        denoising_steps=3,
        value_support=(-10.0, 20.0, 31.0),
        target_entropy=-5.0,
        temperature=0.1,
        observation_keys=("a", "b.c"),
        learn_friction=False,
        loss_critic_type="l2",
    )


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"total_frames": 0}, "--total-frames"),
        ({"num_envs": 0}, "--num-envs"),
        ({"seed": -1}, "--seed"),
        ({"gpus": -1}, "--gpus"),
        ({"cpu_ranks": 0}, "--cpu-ranks"),
        ({"eval_every": 0}, "--eval-every"),
        ({"eval_episodes": 0}, "--eval-episodes"),
        ({"eval_policy": "greedy"}, "--eval-policy"),
        ({"logger": ("csv", "tensorbord")}, "--logger"),
        ({"lr": math.nan}, "--lr"),
        ({"lr": math.inf}, "--lr"),
        ({"gamma": 1.5}, "--gamma"),
        ({"clip_epsilon": 0.0}, "--clip-epsilon"),
        ({"target_kl": 0.0}, "--target-kl"),
        ({"temperature": -1.0}, "--temperature"),
        ({"temperature": 0.0, "target_entropy": -1.0}, "--temperature"),
        ({"target_entropy": math.nan, "temperature": 1.0}, "--target-entropy"),
        ({"clip_value": 0.0}, "--clip-value"),
        ({"clip_value": 0.3, "value_support": (0.0, 1.0, 5.0)}, "--clip-value"),
        ({"loss_critic_type": "huber"}, "--loss-critic-type"),
        ({"max_episode_steps": 0}, "--max-episode-steps"),
        ({"denoising_steps": 0}, "--denoising-steps"),
        ({"lr_schedule": "cosine"}, "--lr-schedule"),
        ({"gpus": 1, "cpu_ranks": 2}, "--cpu-ranks"),
        ({"num_envs": 1, "minibatch_size": 513}, "--minibatch-size"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence_with_flag_and_value(
    options: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ValueError, match=flag) as raised:
        DiffPPOConfig(**options)
    message = str(raised.value)
    name = flag.removeprefix("--").replace("-", "_")
    value = options[name][-1] if name == "logger" else options[name]
    assert str(value) in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    "support", [(1.0, 1.0, 5.0), (0.0, math.inf, 5.0), (0.0, 1.0, 1.0), (0.0, 1.0, 2.5)]
)
def test_a_bad_value_support_is_refused(support: tuple[float, float, float]) -> None:
    words = "--value-support .* whole number of bins .*got " + " ".join(map(str, support))
    with pytest.raises(ValueError, match=words):
        DiffPPOConfig(value_support=support)


def test_a_value_support_needs_three_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser(DiffPPOConfig)
    with pytest.raises(SystemExit):
        parse_options(parser, ["--value-support", "0", "1"])
    assert "--value-support: expected 3 arguments" in capsys.readouterr().err
    assert "--value-support MIN MAX BINS" in parser.format_help()


def test_an_observation_key_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"--observation-keys .* once, got a, b, a\."):
        DiffPPOConfig(observation_keys=("a", "b", "a"))


def test_rows_of_a_rollout_count_denoising_steps() -> None:
    shape = {"num_envs": 3, "rollout_steps": 5}
    assert GaussianPPOConfig(**shape).rollout_rows == 15
    assert DiffPPOConfig(**shape, denoising_steps=4).rollout_rows == 60
    assert DiffPPOConfig(**shape, denoising_steps=4, minibatch_size=60).minibatch_rows == 60


def test_a_minibatch_is_an_eighth_of_the_rows_by_default() -> None:
    assert DiffPPOConfig(num_envs=2, rollout_steps=8, denoising_steps=4).minibatch_rows == 8
    assert DiffPPOConfig(num_envs=1, rollout_steps=1, denoising_steps=1).minibatch_rows == 1


@pytest.mark.parametrize("argv", [["--nope"], ["--total", "5"], ["--num-envs", "many"], ["--lr"]])
def test_a_wrong_flag_ends_with_code_2_and_one_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_options(make_parser(DiffPPOConfig), argv)
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert argv[0] in error


def test_an_option_may_be_changed_in_default_and_text() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(PPOConfig):
        """Mine."""

        lr: float = changed(PPOConfig, "lr", 0.25)
        gamma: float = changed(PPOConfig, "gamma", 0.5, "how patient")

    text = make_parser(Mine).format_help()
    assert "learning rate of the networks (default: 0.25)" in text
    assert "how patient (default: 0.5)" in text
    assert "discount" in make_parser(PPOConfig).format_help()
    with pytest.raises(ValueError, match="--gamma must be between 0 and 1, got 2"):
        Mine(gamma=2.0)


def test_options_of_a_new_configuration_need_no_further_code(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(PPOConfig):
        """Mine."""

        sharpness: float = option(1.0, "how sharp")

    given = parse_options(make_parser(Mine), ["--sharpness", "2.5"])
    assert Mine(**given).sharpness == 2.5


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, None),
        ({"gpus": 1}, None),
        ({"compile": True}, "default"),
        ({"compile": True, "gpus": 1}, "reduce-overhead"),
        ({"compile": True, "gpus": 2}, "default"),
        ({"compile": True, "gpus": 1, "num_nodes": 2, "output": "runs/x"}, "default"),
    ],
)
def test_cuda_graphs_are_for_losses_of_one_rank(options: dict[str, Any], mode: str | None) -> None:
    assert DiffPPOConfig(**options).compile_mode == mode
