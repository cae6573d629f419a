"""The variance-preserving diffusion and the rectified flow, against what their papers say."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffpolicy.sde import (
    NOISE_SCHEDULES,
    DenoisingProcess,
    Process,
    RectifiedFlowProcess,
    VariancePreservingProcess,
    rollout_chain,
    rollout_last,
)

STEPS = 6


def alphas(schedule: str, steps: int) -> list[float]:
    """``abar_t`` for t = 0 .. T, one at a time, from the formulas."""
    found, level = [1.0], 1.0
    for t in range(1, steps + 1):
        if schedule == "vp":
            alpha = math.exp(-0.1 / steps - 9.9 * (2 * t - 1) / (2 * steps**2))
        elif schedule == "linear":
            alpha = 1 - 0.8 * (1e-4 + (0.999 - 1e-4) * (t - 1) / (steps - 1))
        else:
            now, before = (
                math.cos(math.pi / 2 * (k / steps + 0.008) / 1.008) ** 2 for k in (t, t - 1)
            )
            alpha = max(now / before, 0.001)
        level *= alpha
        found.append(level)
    return found


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))
def test_steps_of_the_diffusion_are_those_of_ddpm(schedule: str, variance: str) -> None:
    process = VariancePreservingProcess(2, STEPS, schedule=schedule, variance=variance).double()
    latent, predicted = torch.randn(2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    level = alphas(schedule, STEPS)
    for n in range(STEPS):
        t = STEPS - n
        now, coming = level[t], level[t - 1]
        alpha, beta = now / coming, 1 - now / coming
        clean = ((latent - math.sqrt(1 - now) * predicted) / math.sqrt(now)).clamp(-1, 1)
        mean = beta * math.sqrt(coming) / (1 - now) * clean
        mean = mean + (1 - coming) * math.sqrt(alpha) / (1 - now) * latent
        std = math.sqrt(beta * (1 - coming) / (1 - now) if variance == "posterior" else beta)
        kernel = process.denoising_kernel(latent, predicted, torch.tensor(n))
        torch.testing.assert_close(kernel.mean, mean, rtol=1e-5, atol=1e-6)
        expected = 0.0 if n == STEPS - 1 else std
        assert kernel.std[0].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        noising = process.noising_kernel(latent, torch.tensor(n))
        torch.testing.assert_close(noising.mean, math.sqrt(alpha) * latent, rtol=1e-5, atol=1e-6)
        assert noising.std[0].item() == pytest.approx(math.sqrt(beta), rel=1e-4)


def test_a_rollout_takes_the_steps_of_its_kernels() -> None:
    process = VariancePreservingProcess(2, STEPS, min_std=0.05)
    noise = torch.randn(5, STEPS + 1, 2)
    chain = rollout_chain(process, lambda x, n: torch.sin(x + n), noise)
    taken = chain.denoising.mean + chain.denoising.std * noise[..., 1:, :]
    torch.testing.assert_close(chain.latents[..., 1:, :], taken)
    without = VariancePreservingProcess(2, STEPS)
    last = rollout_last(without, lambda x, n: torch.sin(x + n), noise)
    assert bool((last.abs() <= 1 + 1e-6).all())
    with pytest.raises(ValueError, match="have no densities"):
        rollout_chain(without, lambda x, n: x, noise)


PROCESSES: dict[str, Callable[[int], Process]] = {
    "own": lambda steps: DenoisingProcess(
        1, steps, prior_std=1.0, step_size=2 / steps, schedule="constant", noising_step="same"
    ),
    "cosine": lambda steps: VariancePreservingProcess(1, steps, clip=None),
    "vp": lambda steps: VariancePreservingProcess(1, steps, schedule="vp", clip=None),
    "flow": lambda steps: RectifiedFlowProcess(1, steps),
}


@pytest.mark.parametrize("mode", ["sample", "flow"])
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_the_exact_output_brings_a_gaussian_back(name: str, mode: str) -> None:
    """With what a Gaussian of actions asks of the network, chains end in that Gaussian."""
    torch.manual_seed(0)
    mean, std = 0.4, 0.3
    process = PROCESSES[name](100)

    def exact(latent: Tensor, step: int) -> Tensor:
        place = torch.full(latent.shape[:-1], step)
        level = process.noise_level(place)
        variance = (level.signal * std).square() + level.std.square()
        away = (latent - level.signal * mean) / variance
        clean = mean + level.signal * std**2 * away
        return process.output_for_noise(latent, clean, level.std * away, place)

    noise = torch.randn(20_000, 101, 1)
    with torch.no_grad():
        last = rollout_last(process, exact, noise, mode=mode)
    assert float(last.mean()) == pytest.approx(mean, abs=0.03)
    # Steps of the own process leave an error of first order in their size.
    assert float(last.std()) == pytest.approx(std, abs=0.05)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_noise_levels_are_those_of_the_noising_steps(name: str) -> None:
    process = PROCESSES[name](STEPS)
    if name == "flow":
        with pytest.raises(NotImplementedError, match="no noising kernel"):
            process.noising_kernel(torch.zeros(1), torch.tensor(0))
        return
    with torch.no_grad():
        signal, variance = torch.ones(1), torch.zeros(1)
        for n in reversed(range(STEPS)):
            one = process.noising_kernel(torch.ones(1), torch.tensor(n))
            signal, variance = one.mean * signal, one.mean**2 * variance + one.std**2
            level = process.noise_level(torch.tensor(n))
            torch.testing.assert_close(level.signal.expand(1), signal, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(level.std.expand(1), variance.sqrt(), rtol=1e-4, atol=1e-5)


def test_scores_and_noises_agree() -> None:
    """A score is minus the noise over its std, whatever the network says."""
    for name in ("own", "vp", "cosine"):
        process, place = PROCESSES[name](STEPS), torch.tensor([1, 3])
        latent, noise = torch.randn(2, 1), torch.randn(2, 1)
        with torch.no_grad():
            std = process.noise_level(place).std
            by_score = process.output_for_score(latent, -noise / std, place)
            by_noise = process.output_for_noise(latent, torch.zeros(2, 1), noise, place)
        torch.testing.assert_close(by_score, by_noise)


def test_fewer_steps_walk_through_the_same_levels() -> None:
    process = VariancePreservingProcess(1, 10)
    levels = process.levels
    process.set_denoising_steps(5)
    torch.testing.assert_close(process.levels, levels[::2])
    assert [process.network_step(n) for n in range(5)] == [0, 2, 4, 6, 8]
    process.set_denoising_steps(20)
    torch.testing.assert_close(process.levels[::2], levels)
    torch.testing.assert_close(process.levels[1::2], (levels[:-1] * levels[1:]).sqrt())
    assert [process.network_step(n) for n in range(4)] == [0, 0, 1, 1]
    process.set_denoising_steps(5)
    with pytest.raises(ValueError, match="at least 1"):
        process.set_denoising_steps(0)
    other = VariancePreservingProcess(1, 10)
    other.load_state_dict(process.state_dict())
    assert other.denoising_steps == 5
    flow = RectifiedFlowProcess(1, 4)
    flow.set_denoising_steps(1)
    copied = RectifiedFlowProcess(1, 4)
    copied.load_state_dict(flow.state_dict())
    assert copied.denoising_steps == 1
    assert copied.network_step(0) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"schedule": "sine"}, "schedule must be one of"),
        ({"variance": "none"}, "variance must be"),
        ({"min_std": -1.0}, "min_std must be at least 0"),
        ({"clip": 0.0}, "clip must be a positive"),
        ({"prior_std": 0.0}, "prior_std must be a positive"),
    ],
)
def test_arguments_outside_their_range(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VariancePreservingProcess(1, 4, **arguments)  # type: ignore[arg-type]
