"""The entropy of samples, from a mixture of Gaussians."""

import math

import pytest
import torch

from objectives.functional import fit_gaussian_mixture, mixture_entropy

ROWS, SAMPLES = 40, 400


def gaussian_entropy(size: int, std: float) -> float:
    return size / 2 * math.log(2 * math.pi * math.e * std**2)


@pytest.mark.parametrize(("size", "std"), [(1, 0.05), (1, 0.7), (2, 0.3), (4, 0.3)])
def test_gaussian_samples_have_the_entropy_of_a_gaussian(size: int, std: float) -> None:
    torch.manual_seed(0)
    samples = 0.2 + std * torch.randn(ROWS, SAMPLES, size)
    entropy = mixture_entropy(fit_gaussian_mixture(samples))
    assert entropy.shape == (ROWS, 1)
    assert float(entropy.mean()) == pytest.approx(gaussian_entropy(size, std), abs=0.1)


def test_correlated_dimensions_have_less_entropy() -> None:
    torch.manual_seed(0)
    first = torch.randn(ROWS, SAMPLES, 1)
    samples = torch.cat((first, first + 0.1 * torch.randn_like(first)), -1)
    entropy = mixture_entropy(fit_gaussian_mixture(samples))
    expected = gaussian_entropy(1, 1.0) + gaussian_entropy(1, 0.1)
    assert float(entropy.mean()) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("components", [2, 3])
def test_components_that_are_far_apart_add_the_entropy_of_their_choice(components: int) -> None:
    torch.manual_seed(0)
    place = torch.arange(SAMPLES) % 2
    samples = 0.05 * torch.randn(ROWS, SAMPLES, 2) + (place * 1.6 - 0.8).unsqueeze(-1)
    mixture = fit_gaussian_mixture(samples, components)
    expected = gaussian_entropy(2, 0.05) + math.log(2)
    assert float(mixture_entropy(mixture).mean()) == pytest.approx(expected, abs=0.1)
    torch.testing.assert_close(mixture.weight.sum(-1), torch.ones(ROWS).double())
    torch.testing.assert_close(mixture.share.sum(-1), torch.ones(ROWS, SAMPLES).double())


def test_a_fit_is_better_than_its_start() -> None:
    torch.manual_seed(0)
    samples = torch.randn(ROWS, SAMPLES, 1).abs().sqrt()

    def log_likelihood(iterations: int) -> float:
        mixture = fit_gaussian_mixture(samples, iterations=iterations)
        each = torch.distributions.Normal(
            mixture.mean.squeeze(-1).unsqueeze(1), mixture.covariance[..., 0, 0].sqrt().unsqueeze(1)
        )
        density = each.log_prob(samples.double()).exp() * mixture.weight.unsqueeze(1)
        return float(density.sum(-1).log().mean())

    assert log_likelihood(1) < log_likelihood(3) < log_likelihood(10)


def test_equal_samples_and_their_orders() -> None:
    point = mixture_entropy(fit_gaussian_mixture(torch.ones(2, 9, 3)))
    assert bool(point.isfinite().all())
    assert float(point.max()) < gaussian_entropy(3, 0.01)
    samples = torch.rand(2, 5, 50, 2)
    entropy = mixture_entropy(fit_gaussian_mixture(samples))
    assert entropy.shape == (2, 5, 1)
    turned = mixture_entropy(fit_gaussian_mixture(samples.flip(-2)))
    torch.testing.assert_close(entropy, turned)


def test_samples_that_are_not_finite_have_no_entropy() -> None:
    samples = torch.rand(2, 20, 2)
    samples[0, 3] = math.nan
    entropy = mixture_entropy(fit_gaussian_mixture(samples))
    assert entropy.isnan().tolist() == [[True], [False]]


@pytest.mark.parametrize(
    ("shape", "components", "problem"),
    [((2, 1), 3, "M at least 3"), ((5,), 3, "samples must be"), ((5, 1), 0, "at least 1, got 0")],
)
def test_what_cannot_be_fitted_is_refused(
    shape: tuple[int, ...], components: int, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        fit_gaussian_mixture(torch.rand(shape), components)
