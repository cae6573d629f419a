"""What the method dacer does beyond its loss: alpha's schedule, the noise of acting, its preset."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_methods import small_config
from tensordict import TensorDictBase
from torch import nn

from collectors import make_env
from diffpolicy.actors import NoisyActor
from diffpolicy.trainers import METHODS, prepare, train


def test_alpha_moves_once_in_so_many_updates_and_towards_its_target(tmp_path: Path) -> None:
    # The entropy of two dimensions of uniform actions is 1.4: this is never reached.
    config = small_config(
        "dacer", output=str(tmp_path / "run"), entropy_interval=8, target_entropy=5.0
    )
    run = prepare(config)
    module = run.module
    seen: list[tuple[float, float]] = []
    original = module.training_step

    def step(batch: TensorDictBase, batch_idx: int) -> None:
        original(batch, batch_idx)
        regulator = module.loss.temperature
        seen.append((float(regulator()), float(regulator.entropy)))

    module.training_step = step  # type: ignore[method-assign]
    assert train(run)
    alphas, entropies = zip(*seen, strict=True)
    assert len(seen) == 20
    moved = [n for n, (a, b) in enumerate(pairwise((3.0, *alphas))) if a != pytest.approx(b)]
    measured = [n for n, (a, b) in enumerate(pairwise((5.0, *entropies))) if a != b]
    assert moved == measured == [0, 8, 16]
    assert alphas[-1] > alphas[0] > 3


def test_training_acts_with_noise_that_follows_alpha(tmp_path: Path) -> None:
    module = prepare(small_config("dacer", output=str(tmp_path / "run"), noise_scale=0.2)).module
    policy = module.parts.policy
    assert isinstance(policy, NoisyActor)
    assert policy.scale == 0.2
    assert policy.alpha is module.loss.temperature
    assert policy.actor is module.actor


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layers(*widths: int) -> int:
    """Parameters of linear layers between these widths."""
    return sum((a + 1) * b for a, b in pairwise(widths))


def test_the_published_preset_has_the_published_sizes() -> None:
    config = METHODS["dacer"].config.from_preset("paper", env="Pendulum-v1", total_frames=1_000_000)
    env = make_env("Pendulum-v1")
    loss = METHODS["dacer"].build(env, config, torch.device("cpu")).loss
    env.close()
    actor, hidden = loss.actor_network, (256, 256, 256)
    expected = layers(1 + 3 + 16, *hidden, 1) + layers(16, 32, 16) + 8
    assert parameters(actor.score_network) == expected
    assert actor.denoising_steps == 20
    # Means and standard deviations.
    assert parameters(loss.qvalue_network) == 2 * layers(4, *hidden, 2)
    assert float(loss.temperature()) == pytest.approx(3.0)
    assert loss.temperature.target_entropy == pytest.approx(-0.9)
    assert config.entropy_interval == 10_000
    assert loss.noise_in_updates
