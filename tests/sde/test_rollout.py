"""Whole chains: consistency with single kernels, injected noise, shapes, dtypes and gradients."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from diffpolicy.sde import (
    DenoisingProcess,
    Gaussian,
    draw_noise,
    log_ratio,
    rollout_chain,
    rollout_last,
    rollout_latents,
)

pytestmark = pytest.mark.usefixtures("float64")

MODES = ["sample", "mean", "flow", "published"]


def score(latent: Tensor, step: int) -> Tensor:
    """A score that depends on the latent and on the step."""
    return (1 + step) * torch.sin(latent) - 0.3


def process_with_own_step_sizes(noising_step: str = "next", **options: float) -> DenoisingProcess:
    process = DenoisingProcess(
        2, 5, step_size_per_step=True, noising_step=noising_step, prior_std=1.3, **options
    )
    with torch.no_grad():
        process.raw_step_size.add_(torch.linspace(0, 0.5, 5).unsqueeze(-1))
        process.raw_friction.add_(torch.tensor([0.0, 0.7]))
    process.set_noise_scale(0.7)
    return process


@pytest.mark.parametrize("noising_step", ["same", "next"])
def test_sum_of_log_ratios_equals_hand_written_gaussians(noising_step: str) -> None:
    process = process_with_own_step_sizes(noising_step)
    chain = rollout_chain(process, score, torch.randn(7, 6, 2))

    eta, x = process.step_sizes(), chain.latents
    std = 0.7 * (2 * eta).sqrt()
    log_q, log_p = torch.zeros(7), torch.zeros(7)
    for n in range(5):
        m = n if noising_step == "same" else min(n + 1, 4)
        mean = x[:, n] + eta[n] * (-x[:, n] / 1.3**2 + score(x[:, n], n))
        log_q += Normal(mean, std[n]).log_prob(x[:, n + 1]).sum(-1)
        back = x[:, n + 1] * (1 - eta[m] / 1.3**2)
        log_p += Normal(back, std[m]).log_prob(x[:, n]).sum(-1)

    torch.testing.assert_close(chain.log_prob.sum((-2, -1)), log_q)
    torch.testing.assert_close(chain.noising_log_prob.sum((-2, -1)), log_p)
    torch.testing.assert_close(chain.log_ratio.sum((-2, -1)), log_q - log_p)


@pytest.mark.parametrize("noising_step", ["same", "next"])
@pytest.mark.parametrize("mode", MODES)
def test_chain_agrees_with_the_single_step_kernels(noising_step: str, mode: str) -> None:
    process = process_with_own_step_sizes(noising_step)
    chain = rollout_chain(process, score, torch.randn(3, 6, 2), mode=mode)

    for n in range(5):
        step = torch.full((3,), n)
        latent, following = chain.latents[:, n], chain.latents[:, n + 1]
        denoising = process.denoising_kernel(latent, score(latent, n), step)
        noising = process.noising_kernel(following, step)
        for whole, single in ((chain.denoising, denoising), (chain.noising, noising)):
            at_n = Gaussian(whole.mean[:, n], whole.std[:, n])
            torch.testing.assert_close(at_n.mean, single.mean)
            torch.testing.assert_close(at_n.std, single.std)
        expected = log_ratio(latent, following, denoising, noising)
        torch.testing.assert_close(chain.log_ratio[:, n], expected)


def test_injected_noise_is_what_moves_the_chain() -> None:
    process = process_with_own_step_sizes()
    noise = torch.randn(4, 6, 2)

    chain, again = (rollout_chain(process, score, noise) for _ in range(2))

    assert torch.equal(chain.latents, again.latents)
    torch.testing.assert_close(chain.latents[:, 0], 1.3 * noise[:, 0])
    recovered = (chain.latents[:, 1:] - chain.denoising.mean) / chain.denoising.std
    torch.testing.assert_close(recovered, noise[:, 1:])


def test_noise_of_later_steps_leaves_earlier_latents_alone() -> None:
    process = process_with_own_step_sizes()
    noise = torch.randn(6, 2)
    other = noise.clone()
    other[3] += 1
    first, second = (rollout_chain(process, score, z).latents for z in (noise, other))
    assert torch.equal(first[:3], second[:3])
    assert (first[3:] != second[3:]).all()


@pytest.mark.parametrize("mode", MODES[1:])
def test_chain_without_noise_needs_the_prior_sample_only(mode: str) -> None:
    process = process_with_own_step_sizes()
    noise = torch.full((4, 6, 2), float("nan"))
    noise[:, 0] = torch.randn(4, 2)

    chain = rollout_chain(process, score, noise, mode=mode)

    latent = process.sample_prior((4,), noise[:, 0])
    assert torch.equal(chain.latents[:, 0], latent)
    pull, share = {"mean": (1, 1), "flow": (0, 0.5), "published": (1, 0.5)}[mode]
    for n, eta in enumerate(process.step_sizes()):
        latent = latent + eta * (-pull * latent / 1.3**2 + share * score(latent, n))
        torch.testing.assert_close(chain.latents[:, n + 1], latent)
    assert chain.log_ratio.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_latents_are_those_of_the_chain(mode: str) -> None:
    process = process_with_own_step_sizes()
    noise = torch.randn(3, 4, 6, 2)
    chain = rollout_chain(process, score, noise, mode=mode)
    last = rollout_last(process, score, noise, mode=mode)
    assert torch.equal(last, chain.latents[..., -1, :])
    assert torch.equal(rollout_latents(process, score, noise, mode=mode), chain.latents)


def test_unknown_mode_is_refused() -> None:
    process = process_with_own_step_sizes()
    for rollout in (rollout_chain, rollout_latents, rollout_last):
        with pytest.raises(ValueError, match=r"mode must be 'sample', 'mean', .* got 'ode'"):
            rollout(process, score, torch.randn(6, 2), mode="ode")


def test_score_is_asked_once_per_step_for_the_trained_step() -> None:
    process = DenoisingProcess(1, 2)
    process.set_denoising_steps(5)
    asked: list[int] = []

    def recording(latent: Tensor, step: int) -> Tensor:
        asked.append(step)
        return torch.zeros_like(latent)

    rollout_chain(process, recording, torch.randn(6, 1))
    assert asked == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("batch_size", [(), (1,), (4,), (3, 2), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 4])
def test_shapes_and_dtypes(batch_size: tuple[int, ...], dtype: torch.dtype, steps: int) -> None:
    process = DenoisingProcess(3, steps).to(dtype)

    noise = draw_noise(process, batch_size)
    chain = rollout_chain(process, score, noise)

    assert chain.latents.shape == noise.shape == (*batch_size, steps + 1, 3)
    for tensor in (*chain.denoising, *chain.noising):
        assert tensor.shape == (*batch_size, steps, 3)
        assert tensor.dtype == dtype
    for tensor in (chain.log_prob, chain.noising_log_prob, chain.log_ratio):
        assert tensor.shape == (*batch_size, steps, 1)
        assert tensor.dtype == dtype


def test_batch_elements_do_not_mix() -> None:
    process = process_with_own_step_sizes()
    noise = torch.randn(3, 2, 6, 2)
    together = rollout_chain(process, score, noise)
    alone = rollout_chain(process, score, noise[1, 0])
    torch.testing.assert_close(together.latents[1, 0], alone.latents)
    torch.testing.assert_close(together.log_ratio[1, 0], alone.log_ratio)


@pytest.mark.parametrize("shape", [(5, 2), (4, 7, 2), (4, 6, 3)])
def test_noise_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    process = process_with_own_step_sizes()
    with pytest.raises(ValueError, match=r"noise must have shape \[\*B, 6, 2\], got"):
        rollout_chain(process, score, torch.randn(shape))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_through_the_chain_are_exact(mode: str) -> None:
    process = process_with_own_step_sizes()
    noise, gain = torch.randn(2, 6, 2), torch.tensor(0.7, requires_grad=True)
    names = ("raw_step_size", "raw_friction")
    raw = [getattr(process, name).detach().clone().requires_grad_() for name in names]

    class Run(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.process = process

        def forward(self, gain: Tensor) -> tuple[Tensor, Tensor]:
            chain = rollout_chain(self.process, lambda x, n: gain * score(x, n), noise, mode=mode)
            return chain.latents[:, -1], chain.log_ratio.sum(-2)

    run = Run()

    def outputs(*values: Tensor) -> tuple[Tensor, Tensor]:
        *of_process, gain = values
        given = dict(zip((f"process.{name}" for name in names), of_process, strict=True))
        return torch.func.functional_call(run, given, (gain,))

    assert torch.autograd.gradcheck(outputs, (*raw, gain))


def test_nothing_detaches_the_chain() -> None:
    process = process_with_own_step_sizes()
    shift = torch.zeros(2, requires_grad=True)
    chain = rollout_chain(process, lambda x, n: shift - x, torch.randn(3, 6, 2))
    chain.latents[:, -1].sum().backward()
    for tensor in (shift, process.raw_step_size, process.raw_friction):
        assert (tensor.grad != 0).all()


def test_fixed_process_builds_no_graph() -> None:
    process = DenoisingProcess(2, 3, learn_step_size=False, learn_friction=False)
    chain = rollout_chain(process, score, torch.randn(4, 4, 2))
    assert not chain.log_ratio.requires_grad
