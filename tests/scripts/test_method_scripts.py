"""The command line of every method, run as a user would run it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from documented import documented_metrics
from small_methods import EACH, OFF_POLICY, small_options, small_words, words
from torchrl.envs import EnvBase

from diffpolicy.trainers import METHODS, Method, OffPolicyParts, SACConfig, prepare, run_script
from diffpolicy.trainers.config.options import above, configuration, fields_of, flag_name, option
from diffpolicy.trainers.io.checkpoint import Checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = ["diffppo", "diffsac", "diffwpo", "dime"]
# A run has 120 environment steps and one checkpoint every 40; off-policy the first 40 are random.
FRAMES = {"on-policy": [40, 80, 120], "off-policy": [80, 120]}
# Two epochs of eight minibatches, or a quarter as many updates as steps.
UPDATES = {"on-policy": 16, "off-policy": 10}

Main = Callable[[list[str]], int]
ReadRows = Callable[[Path], list[dict[str, str]]]
ErrorLine = Callable[[Main, list[str]], str]


@pytest.fixture
def main_of(load_main: Callable[[str], Main]) -> Callable[[str], Main]:
    """The ``main`` of a method's script, or its command line where there is none."""

    def find(name: str) -> Main:
        return (
            load_main(f"{name}_lightning")
            if name in SCRIPTS
            else partial(run_script, METHODS[name])
        )

    return find


def test_scripts_are_those_of_methods() -> None:
    scripts = {path.name.removesuffix("_lightning.py") for path in EXAMPLES.glob("*_lightning.py")}
    assert scripts == set(SCRIPTS)
    assert scripts <= METHODS.keys()


def checkpoint_names(output: Path) -> list[str]:
    """Files in ``checkpoints``, without the random part of the names of replay buffers."""
    names = [path.name for path in (output / "checkpoints").iterdir()]
    return sorted(n if n.endswith(".ckpt") else f"{n.partition('-')[0]}.replay" for n in names)


@pytest.mark.parametrize("name", EACH)
def test_a_run_writes_its_files_and_goes_on(
    name: str,
    main_of: Callable[[str], Main],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    read_rows: ReadRows,
) -> None:
    main, kind, output = main_of(name), METHODS[name].kind, tmp_path / "run"
    frames, updates = FRAMES[kind], UPDATES[kind]
    flags = small_words(name, checkpoint_every=40, seed=5)
    assert main([*flags, "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert (results["method"], results["env"], results["seed"]) == (name, "Pendulum-v1", 5)
    assert (results["env_steps"], results["gradient_steps"]) == (120, len(frames) * updates)
    assert results["config"]["actor_hidden_sizes"] == [8]
    config = yaml.safe_load((output / "config.yaml").read_text())
    kept = {k: v for k, v in results["config"].items() if k not in ("output", "resume")}
    assert config == {"method": name, **kept}
    assert (output / "returns.png").stat().st_size > 10_000
    replay = ["frames_0000000120.replay"] if kind == "off-policy" else []
    assert checkpoint_names(output) == [
        *(f"frames_{number:010d}.ckpt" for number in frames),
        *replay,
        "last.ckpt",
    ]
    console = capsys.readouterr()
    assert "evaluation at 120 frames" in console.out
    assert "Warning" not in console.out + console.err

    assert main(["--resume", "last", "--output", str(output), "--total-frames", "160"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    faded = ["the learning rate had fallen to zero at --total-frames 120; it goes on with"]
    expected = faded if kind == "on-policy" else []
    assert [said in line for said, line in zip(expected, warnings, strict=True)] == [True] * len(
        expected
    )
    rows = read_rows(output)
    assert [int(row["frames"]) for row in rows] == [*frames, 160]
    counts = [updates * (index + 1) for index in range(len(rows))]
    assert [int(row["gradient_steps"]) for row in rows] == counts
    assert set(rows[0]) == documented_metrics(name), "docs/metrics.md lists other columns"
    losses = [column for column in rows[0] if column.startswith("loss_")]
    assert len(losses) >= 2
    assert all(math.isfinite(float(row[column])) for row in rows for column in losses)
    state = Checkpoint.read(output / "checkpoints" / "last.ckpt").state
    assert (state["frames"], state["gradient_steps"]) == (160, counts[-1])


@configuration(lr_actor=0.01)
class MyConfig(SACConfig):
    """Mine: SAC that counts its updates."""

    method: ClassVar[str] = "mine"

    step: float = option(1.0, "how much an update counts", valid=above(0))


def my_parts(env: EnvBase, config: MyConfig, device: torch.device) -> OffPolicyParts:
    parts = METHODS["sac"].build(env, config, device)
    assert isinstance(parts, OffPolicyParts)
    counted: list[float] = []

    def after_update() -> None:
        parts.after_update()
        counted.append(config.step)

    return replace(parts, after_update=after_update, diagnostics=lambda: {"count": sum(counted)})


def test_a_method_of_ones_own_needs_options_and_parts_only(
    tmp_path: Path,
    read_rows: ReadRows,
    error_line: ErrorLine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine, output = Method(MyConfig, my_parts, "SAC that counts its updates"), tmp_path / "run"
    argv = [*words(mine, small_options(mine, output=str(output))), "--step", "0.5"]
    with pytest.raises(ValueError, match=r"'mine' is not registered; give make_module.* dime"):
        prepare(MyConfig())
    assert run_script(mine, argv) == 0
    results = json.loads((output / "results.json").read_text())
    assert (results["method"], results["config"]["lr_actor"]) == ("mine", 0.01)
    assert [float(row["count"]) for row in read_rows(output)] == [5.0, 10.0]
    again = ["--resume", "last", "--output", str(output)]
    assert run_script(mine, [*again, "--total-frames", "160"]) == 0
    # Another method does not go on from it.
    capsys.readouterr()
    error = error_line(partial(run_script, METHODS["sac"]), [*again, "--total-frames", "200"])
    assert "is a checkpoint of mine, but this run is sac." in error


@pytest.mark.parametrize("name", OFF_POLICY)
def test_a_run_without_its_replay_buffer_fills_it_again(
    name: str, main_of: Callable[[str], Main], tmp_path: Path, read_rows: ReadRows
) -> None:
    main, output = main_of(name), tmp_path / "run"
    flags = small_words(name, checkpoint_replay="never", output=str(output))
    assert main(flags) == 0
    last = output / "checkpoints" / "last.ckpt"
    # 40 steps of the trained policy, then an iteration of 40.
    assert main(["--resume", str(last), "--total-frames", "200"]) == 0
    assert [int(row["frames"]) for row in read_rows(output)] == [80, 120, 200]
    assert Checkpoint.read(last).state["gradient_steps"] == 30


def test_a_task_of_the_control_suite(main_of: Callable[[str], Main], tmp_path: Path) -> None:
    output = tmp_path / "run"
    options: dict[str, Any] = {"env": "dmc:pendulum-swingup", "value_range": (-20.0, 20.0)}
    assert main_of("dime")([*small_words("dime", **options), "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert (results["env"], results["config"]["value_range"]) == ("dmc:pendulum-swingup", [-20, 20])


@pytest.mark.parametrize("name", METHODS)
def test_help_names_every_flag_in_groups(
    name: str, main_of: Callable[[str], Main], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main_of(name)(["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    for field in fields_of(METHODS[name].config):
        assert f"  {flag_name(field.name)}" in text
    groups = [line for line in text.splitlines() if line.endswith(":") and line[:1].isupper()]
    assert {"Any training run:", "Adam:", "The critic's networks:"} <= set(groups)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dime", "--preset cpu|paper"),
        ("dime", "--critic-head scalar|categorical"),
        ("dime", "--update-order joint|critic_first"),
        ("diffsac", "--critic-head scalar|hl_gauss"),
        ("diffsac", "--value-range MIN MAX"),
        ("diffwpo", "--value-range MIN MAX"),
        ("diffppo", "--collector local|process|ray"),
        ("sac", "--critic-normalization layer|none"),
    ],
)
def test_help_says_what_a_flag_takes(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_script(METHODS[name], ["--help"])
    assert f"  {text}" in capsys.readouterr().out


OF_ALL = [
    (["--env", "CartPole-v1"], "only continuous actions"),
    (["--gamma", "1.5"], "--gamma must be between 0 and 1, got 1.5."),
    (["--actor-hidden-sizes", "0"], "--actor-hidden-sizes must be at least 1, got 0."),
    (["--adam-eps", "0"], "--adam-eps must be greater than 0, got 0.0."),
    (["--max-episode-steps", "0"], "--max-episode-steps must be at least 1, got 0."),
    (["--hidden-size", "9"], "there is no flag --hidden-size; did you mean "),
]
OF_CHAINS = [
    (["--denoising-steps", "0"], "--denoising-steps must be at least 1, got 0."),
    (["--prior-std", "0"], "--prior-std must be greater than 0, got 0.0."),
    (["--step-size", "20"], "step_size is too large"),
]
OF_ONE = {
    "diffsac": [
        (["--sampled-steps", "3"], "--sampled-steps must be at most --denoising-steps 2, got 3."),
        (["--target-steps", "0"], "--target-steps must be at least 1, got 0."),
        (["--critic-head", "c51"], "--critic-head must be one of scalar, hl_gauss, got 'c51'."),
        (
            ["--critic-head", "hl_gauss", "--no-normalize-rewards"],
            "--critic-head hl_gauss with --no-normalize-rewards needs --value-range MIN MAX",
        ),
        (["--value-range", "0", "1"], "--value-range is for --critic-head hl_gauss"),
        (
            ["--critic-normalization", "batch"],
            "--delay-critic does not go with --critic-normalization batch",
        ),
    ],
    "diffwpo": [
        (["--kl-bound", "0"], "--kl-bound must be greater than 0, got 0.0."),
        (
            ["--temperature", "0", "--learn-temperature"],
            "--temperature must be greater than 0 to be learned, got 0.0;",
        ),
        (
            ["--critic-head", "hl_gauss", "--no-normalize-rewards"],
            "--critic-head hl_gauss with --no-normalize-rewards needs --value-range MIN MAX",
        ),
        (["--critic-reduction", "max"], "--critic-reduction must be one of mean, min, got 'max'."),
        (["--minibatch-size", "81"], "--minibatch-size must be at most 80, the rows of a rollout"),
        (["--clip-epsilon", "0.1"], "there is no flag --clip-epsilon"),
    ],
    "dime": [
        (["--updates-per-step", "0"], "--updates-per-step must be greater than 0, got 0.0."),
        (["--updates-per-step", "0.03"], "--updates-per-step 0.03 times --iteration-frames 40"),
        (["--policy-delay", "0"], "--policy-delay must be at least 1, got 0."),
        (["--learning-starts", "21"], "--learning-starts must be a multiple of --num-envs 2"),
        (["--iteration-frames", "5"], "--iteration-frames must be a multiple of --num-envs 2"),
        (["--total-frames", "40"], "--total-frames must be greater than 40"),
        (["--replay-size", "15"], "--replay-size must be at least"),
        (["--value-range", "3", "1"], "--value-range must be a smaller and a greater number"),
        (["--value-range", "0", "inf"], "--value-range must be a smaller and a greater number"),
        (
            ["--value-range", "0", "1", "--critic-head", "scalar"],
            "--value-range is for --critic-head categorical; leave one of them out.",
        ),
        (["--critic-reduction", "min"], "--critic-reduction min needs --critic-head scalar."),
        (["--no-normalize-rewards"], "--no-normalize-rewards needs --value-range MIN MAX"),
        (["--reward-scale", "2"], "--reward-scale 2 changes nothing about normalised rewards"),
        (["--delay-critic"], "--delay-critic does not go with --critic-normalization batch"),
        (["--preset", "tiny"], "--preset must be one of cpu, paper, got 'tiny'."),
        (["--env", "dmc:cheetah-fly"], "--env dmc:cheetah-fly is not a task"),
    ],
}
WRONG = [
    *((name, *case) for name in METHODS for case in OF_ALL),
    *((name, *case) for name in SCRIPTS for case in OF_CHAINS),
    *((name, *case) for name, cases in OF_ONE.items() for case in cases),
]


@pytest.mark.parametrize(("name", "flags", "message"), WRONG)
def test_wrong_flags_are_one_sentence(
    name: str,
    flags: list[str],
    message: str,
    main_of: Callable[[str], Main],
    tmp_path: Path,
    error_line: ErrorLine,
) -> None:
    output = tmp_path / "run"
    assert message in error_line(
        main_of(name), [*small_words(name), *flags, "--output", str(output)]
    )
    assert not output.exists()


def test_the_paper_preset_can_be_changed_by_flags(
    main_of: Callable[[str], Main], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = ["--preset", "paper", "--learning-starts", "4", "--iteration-frames", "2"]
    flags += ["--total-frames", "6", "--batch-size", "4", "--max-episode-steps", "4"]
    flags += ["--eval-episodes", "1", "--env", "Pendulum-v1", "--denoising-steps", "3"]
    assert main_of("dime")([*flags, "--output", str(output)]) == 0
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["critic_hidden_sizes"] == [2048, 2048]
    assert config["actor_hidden_sizes"] == [256, 256, 256]
    assert (config["updates_per_step"], config["policy_delay"], config["num_envs"]) == (2.0, 3, 1)
    assert config["denoising_steps"] == 3
    assert json.loads((output / "results.json").read_text())["gradient_steps"] == 4


@pytest.mark.slow
def test_the_paper_preset_runs_a_hundred_updates(
    main_of: Callable[[str], Main], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = ["--preset", "paper", "--env", "HalfCheetah-v5", "--learning-starts", "300"]
    flags += ["--iteration-frames", "50", "--total-frames", "350", "--max-episode-steps", "50"]
    assert main_of("dime")([*flags, "--eval-episodes", "1", "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["gradient_steps"] == 100
    state = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in state.values())
