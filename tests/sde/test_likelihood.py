"""Gaussian densities, log-ratios and the squashing term against independent formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from diffpolicy.sde import (
    Gaussian,
    gaussian_kl,
    gaussian_log_prob,
    log_ratio,
    prior_log_prob,
    tanh_log_det,
)

pytestmark = pytest.mark.usefixtures("float64")

BATCH_SHAPES = [(), (1,), (5,), (3, 2)]
seeds = st.integers(0, 2**20)


def random_gaussian(shape: tuple[int, ...]) -> Gaussian:
    return Gaussian(3 * torch.randn(shape), (2 * torch.randn(shape)).exp())


def independent(kernel: Gaussian) -> Independent:
    return Independent(Normal(kernel.mean, kernel.std), 1)


@given(seed=seeds, shape=st.sampled_from(BATCH_SHAPES), action_dim=st.integers(1, 4))
def test_log_prob_equals_torch_distributions(seed: int, shape: tuple, action_dim: int) -> None:
    torch.manual_seed(seed)
    kernel = random_gaussian((*shape, action_dim))
    value = 5 * torch.randn(*shape, action_dim)

    result = gaussian_log_prob(value, kernel)

    assert result.shape == (*shape, 1)
    torch.testing.assert_close(result.squeeze(-1), independent(kernel).log_prob(value))


@pytest.mark.parametrize("shape", BATCH_SHAPES)
def test_a_sample_is_the_given_noise_moved_and_scaled(shape: tuple[int, ...]) -> None:
    kernel = random_gaussian((*shape, 2))
    noise = torch.randn(*shape, 2)
    drawn = kernel.sample(noise)
    torch.testing.assert_close(drawn, kernel.mean + kernel.std * noise)
    assert torch.equal(kernel.log_prob(drawn), gaussian_log_prob(drawn, kernel))
    several = torch.randn(7, *shape, 2)
    torch.testing.assert_close(kernel.sample(several), kernel.mean + kernel.std * several)
    with pytest.raises(ValueError, match="noise must have the shape of the mean"):
        kernel.sample(torch.randn(*shape, 1))


def test_without_noise_a_sample_follows_the_generator() -> None:
    kernel = random_gaussian((5, 2))
    torch.manual_seed(1)
    expected = kernel.sample(torch.randn(5, 2))
    torch.manual_seed(1)
    assert torch.equal(kernel.sample(), expected)
    assert (kernel.sample() != expected).all()


@given(seed=seeds, shape=st.sampled_from(BATCH_SHAPES), action_dim=st.integers(1, 4))
def test_kl_equals_torch_distributions(seed: int, shape: tuple, action_dim: int) -> None:
    torch.manual_seed(seed)
    first, second = (random_gaussian((*shape, action_dim)) for _ in range(2))

    result = gaussian_kl(first, second)

    assert result.shape == (*shape, 1)
    expected = kl_divergence(independent(first), independent(second))
    torch.testing.assert_close(result.squeeze(-1), expected)
    assert (result >= 0).all()
    assert (gaussian_kl(first, first) == 0).all()


@given(seed=seeds, shape=st.sampled_from(BATCH_SHAPES))
def test_log_ratio_is_the_difference_of_two_normals(seed: int, shape: tuple) -> None:
    torch.manual_seed(seed)
    denoising, noising = (random_gaussian((*shape, 2)) for _ in range(2))
    latent, next_latent = torch.randn(2, *shape, 2)

    result = log_ratio(latent, next_latent, denoising, noising)

    expected = independent(denoising).log_prob(next_latent) - independent(noising).log_prob(latent)
    torch.testing.assert_close(result.squeeze(-1), expected)


def test_prior_log_prob_is_that_of_a_centred_normal() -> None:
    latent = torch.randn(4, 3)
    expected = Normal(0.0, 2.5).log_prob(latent).sum(-1, keepdim=True)
    torch.testing.assert_close(prior_log_prob(latent, torch.tensor(2.5)), expected)


@given(seed=seeds)
def test_tanh_log_det_equals_autograd(seed: int) -> None:
    torch.manual_seed(seed)
    latent = torch.empty(6, 3).uniform_(-5, 5).requires_grad_()
    (slope,) = torch.autograd.grad(latent.tanh().sum(), latent)

    torch.testing.assert_close(
        tanh_log_det(latent), slope.log().sum(-1, keepdim=True), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [50.0, -50.0, 1e4, -1e4])
def test_tanh_log_det_is_finite_far_out(value: float, dtype: torch.dtype) -> None:
    latent = torch.full((2,), value, dtype=dtype, requires_grad=True)

    log_det = tanh_log_det(latent)
    log_det.backward()

    # log(1 - tanh(x)^2) tends to log 4 - 2 |x|.
    assert log_det.item() == pytest.approx(2 * (math.log(4) - 2 * abs(value)), rel=1e-6)
    torch.testing.assert_close(latent.grad, torch.full_like(latent, -math.copysign(2, value)))


def test_different_action_dimensions_raise() -> None:
    kernel = Gaussian(torch.zeros(4, 2), torch.ones(4, 2))
    other = Gaussian(torch.zeros(4, 1), torch.ones(4, 1))
    with pytest.raises(ValueError, match="value has 1 action dimensions where 2 are expected"):
        gaussian_log_prob(torch.zeros(4, 1), kernel)
    with pytest.raises(ValueError, match="second has 1 action dimensions where 2 are expected"):
        gaussian_kl(kernel, other)
    with pytest.raises(ValueError, match=r"shapes \(4, 1\) and \(4, 2\)"):
        log_ratio(torch.zeros(4, 2), torch.zeros(4, 1), kernel, kernel)
