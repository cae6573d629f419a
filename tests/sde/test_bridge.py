"""Chains between the prior and an action, against the joint Gaussian of all their latents."""

import pytest
import torch
from torch import Tensor

from diffpolicy.sde import DenoisingProcess, RectifiedFlowProcess, VariancePreservingProcess
from diffpolicy.sde.base import ProcessModule

STEPS, CLEAN = 5, 0.7


def denoising(**options: object) -> DenoisingProcess:
    settings = {"prior_std": 0.4, "step_size": 0.08, "schedule": "cosine", **options}
    return DenoisingProcess(1, STEPS, **settings).double().requires_grad_(False)


# Half of them forget the action on the way, half do not.
PROCESSES = {
    "next": denoising(),
    "same": denoising(noising_step="same", prior_std=2.5),
    "long steps": denoising(step_size=0.25),
}


def joint(process: DenoisingProcess) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``x_0 .. x_N`` that are noised from ``x_N``."""
    mean = torch.zeros(STEPS + 1, dtype=torch.float64)
    weights = torch.zeros(STEPS + 1, STEPS, dtype=torch.float64)  # of the independent noises
    mean[STEPS] = CLEAN
    for step in reversed(range(STEPS)):
        kernel = process.noising_kernel(torch.ones(1, dtype=torch.float64), torch.tensor(step))
        mean[step] = kernel.mean * mean[step + 1]
        weights[step] = kernel.mean * weights[step + 1]
        weights[step, step] = kernel.std
    return mean, weights @ weights.T


@pytest.mark.parametrize("name", PROCESSES)
def test_latents_are_those_of_chains_with_both_ends(name: str) -> None:
    process = PROCESSES[name]
    mean, covariance = joint(process)
    level = process.bridge_level(torch.arange(STEPS))
    for step in range(STEPS):
        gain = covariance[step, 0] / covariance[0, 0]
        # The first latent is drawn from N(0, prior_std^2), whatever the action is.
        expected = mean[step] - gain * mean[0]
        variance = covariance[step, step] - gain * covariance[0, step]
        variance = variance + gain**2 * process.prior_std**2
        torch.testing.assert_close(level.signal[step, 0] * CLEAN, expected)
        torch.testing.assert_close(level.std[step, 0], variance.sqrt())
    torch.testing.assert_close(level.signal[0, 0], torch.zeros_like(level.signal[0, 0]))
    torch.testing.assert_close(level.std[0, 0], process.prior_std)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_step_of_the_output_has_the_mean_of_the_bridge(name: str) -> None:
    process = PROCESSES[name]
    mean, covariance = joint(process)
    for step in range(STEPS):
        latent, index = torch.tensor([0.3], dtype=torch.float64), torch.tensor(step)
        clean = torch.full_like(latent, CLEAN)
        output = process.output_for_clean(latent, clean, index)
        gain = covariance[step + 1, step] / covariance[step, step]
        expected = mean[step + 1] + gain * (latent - mean[step])
        torch.testing.assert_close(process.denoising_kernel(latent, output, index).mean, expected)


def test_small_steps_give_the_score_of_the_noised_latent() -> None:
    process = DenoisingProcess(1, 2000, prior_std=0.5, step_size=0.002).double()
    step = torch.tensor(700)
    latent, clean = torch.tensor([0.3]).double(), torch.tensor([-0.4]).double()
    signal, std = process.noise_level(step)
    limit = process.output_for_noise(latent, clean, (latent - signal * clean) / std, step)
    found = process.output_for_clean(latent, clean, step)
    torch.testing.assert_close(found, limit, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "process",
    [VariancePreservingProcess(1, STEPS), RectifiedFlowProcess(1, STEPS)],
    ids=["diffusion", "flow"],
)
def test_others_are_regressed_on_their_noise(process: ProcessModule) -> None:
    step = torch.arange(STEPS)
    noise, clean = torch.randn(STEPS, 1), torch.full((STEPS, 1), CLEAN)
    level = process.bridge_level(step)
    latent = level.signal * clean + level.std * noise
    torch.testing.assert_close(level, process.noise_level(step))
    found = process.output_for_clean(latent, clean, step)
    expected = process.output_for_noise(latent, clean, noise, step)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
