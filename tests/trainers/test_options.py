import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_methods import words

from diffpolicy.errors import ArgumentError
from diffpolicy.trainers import METHODS, DiffPPOConfig, GaussianPPOConfig
from diffpolicy.trainers.config.options import (
    changed,
    configuration,
    fields_of,
    flag_name,
    in_flags,
    option,
)
from diffpolicy.trainers.methods.ppo import PPOConfig
from diffpolicy.trainers.run.parser import Parser

CONFIGS = pytest.mark.parametrize("config_class", [m.config for m in METHODS.values()])


def parsed(argv: list[str], config_class: type[Any] = DiffPPOConfig) -> dict[str, Any]:
    return Parser(config_class).parse_options(argv)


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The line that a wrong command line prints."""
    with pytest.raises(SystemExit) as raised:
        parsed(argv)
    assert raised.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.partition("error: ")[2].rstrip("\n")


# ---------------------------------------------------------------------------------------------
# Every method


@CONFIGS
def test_every_option_is_a_flag_with_help(config_class: type[Any]) -> None:
    text = Parser(config_class).format_help()
    for field in dataclasses.fields(config_class):
        assert f"  {flag_name(field.name)}" in text, field.name
        assert field.metadata["help"]


@CONFIGS
def test_no_flags_give_the_defaults(config_class: type[Any]) -> None:
    given = parsed([], config_class)
    assert given == {}
    assert config_class(**given) == config_class()


@CONFIGS
def test_the_defaults_on_the_command_line_are_the_defaults(config_class: type[Any]) -> None:
    options = {f.name: f.default for f in fields_of(config_class) if f.default is not None}
    (method,) = (m for m in METHODS.values() if m.config is config_class)
    given = parsed(words(method, options), config_class)
    assert given == options
    assert {k: type(v) for k, v in given.items()} == {k: type(v) for k, v in options.items()}


@CONFIGS
def test_an_option_means_the_same_in_every_method(config_class: type[Any]) -> None:
    """Methods change defaults, words and ranges; some only what a resumed run must keep."""
    kept_by_some = {"temperature", "gamma"}
    for field in fields_of(config_class):
        for other in METHODS.values():
            theirs = other.config.__dataclass_fields__.get(field.name)
            if theirs is not None:
                assert theirs.type == field.type, (other.name, field.name)
                if field.name not in kept_by_some:
                    assert theirs.metadata["fixed"] == field.metadata["fixed"], field.name


def test_methods_are_registered_under_their_names() -> None:
    assert all(name == method.name for name, method in METHODS.items())
    assert {"dime", "diffsac", "diffppo", "diffwpo"} <= METHODS.keys()
    assert all(len(method.summary.splitlines()) == 1 for method in METHODS.values())


# ---------------------------------------------------------------------------------------------
# The command line


def test_flags_reach_the_configuration() -> None:
    argv = "--total-frames 7 --lr 0.5 --env Hopper-v5 --compile --no-normalize-observations"
    argv += " --logger csv --logger wandb --target-kl 0.1 --denoising-steps 3"
    argv += " --advantage-normalization center --learn-temperature --target-entropy -5"
    argv += " --critic-head hl_gauss --value-range -10 20 --bins 31 --actor-hidden-sizes 9"
    argv += " --temperature 0.1 --observation-keys a --observation-keys b.c --no-learn-friction"
    argv += " --loss-critic-type l2 --critic-hidden-sizes 8 7"
    argv += " --adam-eps 1e-7 --lr-process 0 --lr-temperature 0.25"
    config = DiffPPOConfig(**parsed(argv.split()))
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
        critic_head="hl_gauss",
        value_range=(-10.0, 20.0),
        bins=31,
        actor_hidden_sizes=(9,),
        critic_hidden_sizes=(8, 7),
        learn_temperature=True,
        target_entropy=-5.0,
        temperature=0.1,
        observation_keys=("a", "b.c"),
        learn_friction=False,
        loss_critic_type="l2",
        adam_eps=1e-7,
        lr_process=0.0,
        lr_temperature=0.25,
    )


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--total-frames", "1000000"], 1_000_000),
        (["--total_frames", "1e6"], 1_000_000),
        (["--total_frames=1_000_000"], 1_000_000),
        (["--total-frames=5.0"], 5),
        (["--total-frames", "9007199254740993"], 9007199254740993),
    ],
)
def test_numbers_and_flags_may_be_spelled_in_several_ways(argv: list[str], value: int) -> None:
    assert parsed(argv) == {"total_frames": value}


def test_booleans_are_a_flag_and_its_negation() -> None:
    assert parsed(["--compile"]) == {"compile": True}
    assert parsed(["--no-compile"]) == {"compile": False}
    assert parsed(["--no_learn_friction"]) == {"learn_friction": False}


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--total-frames", "1.5"], "--total-frames must be a whole number, got '1.5'."),
        (["--total-frames", "inf"], "--total-frames must be a whole number, got 'inf'."),
        (["--num_envs", "many"], "--num-envs must be a whole number, got 'many'."),
        (["--lr", "fast"], "--lr must be a number, got 'fast'."),
        (["--lr"], "argument --lr: expected one argument"),
        (["--value-range", "0"], "--value-range: expected 2 arguments"),
        (["--totl-frames", "5"], "there is no flag --totl-frames; did you mean --total-frames?"),
        (["--total", "5"], "there is no flag --total; did you mean --total-frames?"),
        (["--lr_sched=linear"], "there is no flag --lr-sched; did you mean --lr-schedule?"),
        (["--qqqqqq"], "there is no flag --qqqqqq; --help lists all flags."),
        (["5"], "5 belongs to no flag; --help lists all flags."),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refused(capsys, argv)


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[[str], list[str]]:
    """Write a file and return the flags that read it."""

    def write(text: str) -> list[str]:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return ["--config", str(path)]

    return write


def test_flags_may_come_from_a_file_and_override_it(write_yaml: Callable[[str], list[str]]) -> None:
    text = "total-frames: 1e6\nnum_envs: 2\nlogger: [csv, tensorboard]\ncompile: true\n"
    text += "value_range: [-1, 1.5]\ncritic-hidden-sizes: 9\ntarget_kl: null\nlr: 3e-4\n"
    flags = write_yaml(text)
    expected = {
        "total_frames": 1_000_000,
        "num_envs": 2,
        "logger": ("csv", "tensorboard"),
        "compile": True,
        "value_range": (-1.0, 1.5),
        "critic_hidden_sizes": (9,),
        "target_kl": None,
        "lr": 3e-4,
    }
    assert parsed(flags) == expected
    overriding = ["--num-envs", "3", "--logger", "wandb", "--logger", "csv", "--no-compile"]
    changes = {"num_envs": 3, "logger": ("wandb", "csv"), "compile": False}
    assert parsed([*flags, *overriding]) == {**expected, **changes}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("frames: 3", "there is no flag --frames; "),
        ("total_frames: 1.5", "--total-frames must be a whole number, got 1.5."),
        ("total_frames: [1, 2]", "--total-frames must be one value, got 1 2."),
        ("lr: true", "--lr must be a number, got True."),
        ("value_range: 5", "--value-range"),
        ("value_range: [5]", "--value-range must be 2 values, got 5.0."),
        ("- 3", "config"),
        ("{", "config"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    text: str,
    line: str,
    write_yaml: Callable[[str], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert line in refused(capsys, write_yaml(text))


def test_a_file_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, ["--config", "nowhere.yaml"])
    assert "--config" in error
    assert "nowhere.yaml" in error


# ---------------------------------------------------------------------------------------------
# Values


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
        ({"temperature": 0.0, "learn_temperature": True}, "--temperature"),
        ({"target_entropy": math.nan, "temperature": 1.0}, "--target-entropy"),
        ({"clip_value": 0.0}, "--clip-value"),
        ({"clip_value": 0.3, "critic_head": "hl_gauss"}, "--clip-value"),
        ({"total_frames": 1.5}, "--total-frames"),
        ({"compile": 1}, "--compile"),
        ({"critic_head": "categorical"}, "--critic-head"),
        ({"bins": 1, "critic_head": "hl_gauss"}, "--bins"),
        ({"adam_eps": 0.0}, "--adam-eps"),
        ({"lr_process": -1.0}, "--lr-process"),
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


@pytest.mark.parametrize("given", [(1.0, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_a_bad_value_range_is_refused(given: tuple[float, float]) -> None:
    words = "--value-range must be a smaller and a greater number, got "
    with pytest.raises(ValueError, match=words + f"{given[0]:g} {given[1]:g}"):
        DiffPPOConfig(critic_head="hl_gauss", value_range=given)


@pytest.mark.parametrize("options", [{"value_range": (0.0, 1.0)}, {"bins": 11}])
def test_bins_of_a_scalar_critic_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    words = f"{flag_name(name)} is for --critic-head hl_gauss; leave one of them out"
    with pytest.raises(ValueError, match=words):
        DiffPPOConfig(**options)


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


def test_an_option_may_be_changed_in_default_and_text() -> None:
    @configuration(lr=0.25, gamma=changed(0.5, text="how patient"))
    class Mine(PPOConfig):
        """Mine."""

    text = Parser(Mine).format_help()
    assert "learning rate of the networks (default: 0.25)" in text
    assert "how patient (default: 0.5)" in text
    assert "discount" in Parser(PPOConfig).format_help()
    with pytest.raises(ValueError, match="--gamma must be between 0 and 1, got 2"):
        Mine(gamma=2.0)


def test_only_options_that_there_are_can_be_changed() -> None:
    with pytest.raises(TypeError, match="Mine has no option 'hidden_size'"):

        @configuration(hidden_size=3)
        class Mine(PPOConfig):
            """Mine."""


def test_options_of_a_new_configuration_need_no_further_code() -> None:
    @configuration()
    class Mine(PPOConfig):
        """Mine."""

        sharpness: float = option(1.0, "how sharp")

    assert Mine(**parsed(["--sharpness", "2.5"], Mine)).sharpness == 2.5
    assert "Mine:\n" in Parser(Mine).format_help()


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


@pytest.mark.parametrize(
    ("argument", "value", "shown"),
    [
        ("name", "Ant-v9", "--env Ant-v9 does not do."),
        ("backend", "ray", "--collector ray does not do."),
        ("initial", 1e9, "--temperature 1000000000.0 does not do."),
        ("prioritized", True, "--prioritized-replay does not do."),
        ("value_range", (1.0, 0.0), "--value-range 1.0 0.0 does not do."),
    ],
)
def test_the_command_line_shows_the_flag_of_an_argument(
    argument: str, value: object, shown: str
) -> None:
    assert in_flags(ArgumentError(argument, value, "does not do.")) == shown
    assert in_flags(ValueError("--seed is wrong")) == "--seed is wrong"
