"""What the methods of the regression family do beyond their losses: presets, schedules, buffers."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_methods import small_config
from torch import Tensor, nn

from collectors import make_env
from diffpolicy.sde import NOISE_SCHEDULES
from diffpolicy.trainers import METHODS, prepare, train
from diffpolicy.trainers.io.checkpoint import Checkpoint

FAMILY = ("diffusion_ql", "dipo", "dpmd", "fpmd", "maxent_dp", "qvpo", "sdac")
#: Widths of the network, steps, and noise schedule of each preset (docs of the methods).
PAPER = {
    "diffusion_ql": ((256, 256, 256), 5, "vp"),
    "dipo": ((256, 256, 256), 100, "cosine"),
    "dpmd": ((256, 256, 256), 20, "linear"),
    "fpmd": ((256, 256, 256), 20, None),
    "maxent_dp": ((256, 256), 20, "cosine"),
    "qvpo": ((256, 256, 256), 20, "cosine"),
    "sdac": ((256, 256, 256), 20, "linear"),
}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layers(*widths: int) -> int:
    """Parameters of linear layers between these widths."""
    return sum((a + 1) * b for a, b in pairwise(widths))


@pytest.mark.parametrize("name", FAMILY)
def test_published_presets_have_the_published_sizes(name: str) -> None:
    hidden, steps, schedule = PAPER[name]
    config = METHODS[name].config.from_preset("paper", env="Pendulum-v1", total_frames=100_000)
    env = make_env("Pendulum-v1")
    parts = METHODS[name].build(env, config, torch.device("cpu"))
    env.close()
    actor = parts.loss.actor_network
    # Action, observation and 16 features of the time, which two layers make of 16; 8 phases.
    expected = layers(1 + 3 + 16, *hidden, 1) + layers(16, 32, 16) + 8
    assert parameters(actor.score_network) == expected
    assert actor.denoising_steps == steps
    if schedule is not None:
        levels = NOISE_SCHEDULES[schedule](steps).flip(0).float()
        torch.testing.assert_close(actor.process.levels[:-1], levels)
    critics = (256, 256) if name in ("dipo", "maxent_dp") else (256, 256, 256)
    assert parameters(parts.loss.qvalue_network) == 2 * layers(4, *critics, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_published_presets_train(name: str, tmp_path: Path) -> None:
    """A few updates of the published networks."""
    config = METHODS[name].config.from_preset(
        "paper",
        env="Pendulum-v1",
        num_envs=2,
        learning_starts=20,
        iteration_frames=20,
        updates_per_step=0.1,
        policy_delay=1,
        batch_size=16,
        total_frames=40,
        eval_episodes=1,
        logger=("csv",),
        output=str(tmp_path / "run"),
    )
    run = prepare(config)
    assert train(run)
    assert run.module.progress.gradient_steps == 2


def test_the_weight_of_uniform_actions_falls_to_a_tenth(tmp_path: Path) -> None:
    config = small_config("qvpo", output=str(tmp_path / "run"), uniform_weight=0.5)
    run = prepare(config)
    assert train(run)
    assert run.module.progress.gradient_steps == config.planned_updates == 20
    state = Checkpoint.of_run(str(tmp_path / "run"), "run").content["state_dict"]
    (weight,) = (value for key, value in state.items() if key.endswith("uniform_weight"))
    assert float(weight) == pytest.approx(0.05)


def test_dipo_keeps_improved_actions_beside_those_that_were_executed(tmp_path: Path) -> None:
    config = small_config("dipo", output=str(tmp_path / "run"), ascent_lr=0.2)
    run = prepare(config)
    module = run.module
    kept: list[tuple[Tensor, Tensor]] = []
    original = module.on_train_epoch_end

    def end() -> None:
        original()
        rows = module.stream.buffer[:]
        kept.append((rows["action"].clone(), rows["improved_action"].clone()))

    module.on_train_epoch_end = end  # type: ignore[method-assign]
    assert train(run)
    action, improved = kept[-1]
    moved = (action != improved).any(-1)
    assert bool(moved.any())
    assert not bool(moved.all())


def test_mean_flows_are_not_compiled() -> None:
    with pytest.raises(ValueError, match="--compile does not go with --flow mean"):
        METHODS["fpmd"].config(flow="mean", compile=True, env="Pendulum-v1")
