"""What theory says about chains with known answers, without sampling error where possible."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffpolicy.sde import (
    DenoisingProcess,
    Gaussian,
    gaussian_log_prob,
    prior_log_prob,
    rollout_chain,
    schedule_factors,
)

pytestmark = pytest.mark.usefixtures("float64")

Points = Callable[[int], Tensor]
Expectation = Callable[[Tensor], Tensor]
GAIN = [-0.4, 0.3, 0.9, -1.1]
SHIFT = [0.5, -0.2, 0.1, 0.7]


def zero_score(latent: Tensor, step: int) -> Tensor:
    return torch.zeros_like(latent)


def linear_score(latent: Tensor, step: int) -> Tensor:
    return GAIN[step] * latent + SHIFT[step]


def linear_process(noising_step: str) -> DenoisingProcess:
    return DenoisingProcess(
        1, 4, prior_std=1.4, schedule="linear", step_size=0.3, noising_step=noising_step
    )


def linear_moments(eta: list[float], variance: float) -> tuple[list, list, list]:
    """Slope of each step, and mean and variance of every latent, of the linear policy."""
    slopes, means, variances = [], [0.0], [variance]
    for n in range(4):
        slope = 1 + eta[n] * (GAIN[n] - 1 / 1.4**2)
        slopes.append(slope)
        means.append(slope * means[n] + eta[n] * SHIFT[n])
        variances.append(slope**2 * variances[n] + 2 * eta[n])
    return slopes, means, variances


@pytest.mark.parametrize("noising_step", ["same", "next"])
def test_linear_gaussian_policy_has_its_closed_form_log_ratio(
    noising_step: str, noise_points: Points, expectation: Expectation
) -> None:
    process = linear_process(noising_step)
    eta = process.step_sizes().squeeze(-1).tolist()
    slopes, means, variances = linear_moments(eta, 1.4**2)

    chain = rollout_chain(process, linear_score, noise_points(4))
    measured = expectation(chain.log_ratio).squeeze(-1)

    for n in range(4):
        m = n if noising_step == "same" else min(n + 1, 3)
        a = 1 - eta[m] / 1.4**2
        residual = 1 - a * slopes[n]
        offset = residual * means[n] - a * eta[n] * SHIFT[n]
        square = residual**2 * variances[n] + offset**2 + a**2 * 2 * eta[n]
        closed_form = square / (4 * eta[m]) - 0.5 + 0.5 * math.log(eta[m] / eta[n])
        assert measured[n].item() == pytest.approx(closed_form, rel=1e-10)


@pytest.mark.parametrize("noising_step", ["same", "next"])
def test_entropy_exceeds_its_bound_by_the_kl_to_the_true_reversal(
    noising_step: str, noise_points: Points, expectation: Expectation
) -> None:
    process = linear_process(noising_step)
    eta = process.step_sizes().squeeze(-1).tolist()
    slopes, means, variances = linear_moments(eta, 1.4**2)

    chain = rollout_chain(process, linear_score, noise_points(4))
    prior = prior_log_prob(chain.latents[:, 0], process.prior_std)
    bound = -expectation(chain.log_ratio.sum(-2) + prior).item()

    slack = 0.0
    for n in range(4):
        m = n if noising_step == "same" else min(n + 1, 3)
        a, noising_variance = 1 - eta[m] / 1.4**2, 2 * eta[m]
        gain = slopes[n] * variances[n] / variances[n + 1]
        ratio = (variances[n] - gain**2 * variances[n + 1]) / noising_variance
        distance = (means[n] - a * means[n + 1]) ** 2 + (gain - a) ** 2 * variances[n + 1]
        slack += 0.5 * (ratio + distance / noising_variance - 1 - math.log(ratio))
    entropy = 0.5 * math.log(2 * math.pi * math.e * variances[-1])
    assert slack > 0.01
    assert entropy - bound == pytest.approx(slack, rel=1e-9)


def test_without_score_the_log_ratio_is_known_on_every_path() -> None:
    process = DenoisingProcess(
        3, 6, prior_std=1.8, step_size_per_step=True, schedule="cosine", noising_step="same"
    )
    with torch.no_grad():
        process.raw_step_size.normal_(-1.0)
    chain = rollout_chain(process, zero_score, torch.randn(50, 7, 3))
    run_and_prior = chain.log_ratio.sum(-2) + prior_log_prob(chain.latents[:, 0], process.prior_std)

    eta = process.step_sizes()[:, :1]
    square = chain.latents.square().sum(-1, keepdim=True)
    drop = (eta * (square[:, :-1] - square[:, 1:]) / (4 * 1.8**4)).sum(-2)
    expected = prior_log_prob(chain.latents[:, -1], process.prior_std) - drop
    torch.testing.assert_close(run_and_prior, expected)


# The gap in nats for a target N(0, 0.25) with the exact continuous-time reversal over horizon 3.
EXACT_REVERSAL_GAPS = {4: 0.695, 8: 0.207, 16: 0.0763, 32: 0.0320, 64: 0.0145, 256: 0.0034}


@pytest.mark.parametrize(("steps", "gap"), EXACT_REVERSAL_GAPS.items())
def test_exact_reversal_has_the_published_discretisation_gap(
    steps: int, gap: float, noise_points: Points, expectation: Expectation
) -> None:
    horizon, target_std = 3.0, 0.5
    step_size = horizon / schedule_factors("cosine", steps).sum().item()
    process = DenoisingProcess(
        1, steps, schedule="cosine", step_size=step_size, noising_step="same"
    )
    eta = process.step_sizes().detach().squeeze(-1)
    remaining = (eta.sum() - eta.cumsum(0) + eta).tolist()

    def exact_score(latent: Tensor, step: int) -> Tensor:
        variance = 1 + (target_std**2 - 1) * math.exp(-2 * remaining[step])
        return 2 * latent * (1 - 1 / variance)

    with torch.no_grad():
        chain = rollout_chain(process, exact_score, noise_points(steps))
    target = Gaussian(torch.zeros(1), torch.tensor([target_std]))
    bound = (
        gaussian_log_prob(chain.latents[:, -1], target)
        - chain.log_ratio.sum(-2)
        - prior_log_prob(chain.latents[:, 0], process.prior_std)
    )
    # The target is normalised, so its log Z is zero.
    assert -expectation(bound).item() == pytest.approx(gap, rel=5e-3, abs=5e-5)


@pytest.mark.parametrize("noising_step", ["same", "next"])
@pytest.mark.parametrize("score_gain", [0.0, 0.8])
def test_path_weights_average_to_the_normaliser(noising_step: str, score_gain: float) -> None:
    """E[exp(Q - run - prior)] = Z for any score, by quadrature over all noise of two steps."""
    nodes, weights = (torch.as_tensor(part) for part in gauss_hermite(60))
    grid = torch.cartesian_prod(nodes, nodes, nodes).unsqueeze(-1)
    weight = torch.cartesian_prod(weights, weights, weights).prod(-1, keepdim=True)
    process = DenoisingProcess(1, 2, step_size=0.4, noising_step=noising_step)

    chain = rollout_chain(process, lambda x, n: score_gain * torch.sin(x), grid)

    log_target = gaussian_log_prob(
        chain.latents[:, -1], Gaussian(torch.tensor([0.3]), torch.tensor([0.9]))
    )
    run = chain.log_ratio.sum(-2) + prior_log_prob(chain.latents[:, 0], process.prior_std)
    mean = (weight * (math.log(2.5) + log_target - run).exp()).sum().item()
    assert mean == pytest.approx(2.5, rel=1e-6)


def gauss_hermite(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for expectations under a standard normal (Golub-Welsch)."""
    off_diagonal = torch.arange(1, order).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return nodes, vectors[0].square()


def test_unscored_chain_keeps_the_prior_up_to_the_exact_discretisation(
    noise_points: Points,
) -> None:
    process = DenoisingProcess(1, 8, prior_std=3.0, schedule="constant", step_size=0.5)
    chain = rollout_chain(process, zero_score, noise_points(8))
    variance = chain.latents[1:10, -1].square().sum().item()  # one unit of noise at a time

    expected = 9.0
    for _ in range(8):
        expected = (1 - 0.5 / 9) ** 2 * expected + 2 * 0.5
    assert variance == pytest.approx(expected, rel=1e-12)
    stationary = 9 / (1 - 0.5 / 18)
    assert 9 < variance < stationary
    assert math.sqrt(variance) == pytest.approx(3.0, rel=0.015)


def test_unscored_chain_samples_have_the_std_of_the_prior() -> None:
    process = DenoisingProcess(2, 8, prior_std=3.0, schedule="constant", step_size=0.02)
    with torch.no_grad():
        chain = rollout_chain(process, zero_score, torch.randn(20_000, 9, 2))
    last = chain.latents[:, -1]
    sampling_error = 3.0 / math.sqrt(2 * 20_000)
    assert (last.std(0) - 3.0).abs().max().item() < 4 * sampling_error
    assert last.mean(0).abs().max().item() < 4 * 3.0 / math.sqrt(20_000)


def reversed_noising(steps: int, horizon: float) -> tuple[DenoisingProcess, list[float], float]:
    """A process with prior std 1.3, the time left at every step, and the variance at the start.

    The target is N(0, 0.5^2): noised for a time t its variance is
    ``1.3^2 + (0.5^2 - 1.3^2) exp(-2 t / 1.3^2)``.
    """
    step_size = horizon / schedule_factors("cosine", steps).sum().item()
    process = DenoisingProcess(
        1, steps, prior_std=1.3, schedule="cosine", step_size=step_size, noising_step="same"
    )
    eta = process.step_sizes().detach().squeeze(-1)
    return process, (eta.sum() - eta.cumsum(0) + eta).tolist(), noised_variance(horizon)


def noised_variance(time: float) -> float:
    return 1.3**2 + (0.5**2 - 1.3**2) * math.exp(-2 * time / 1.3**2)


def transported_variance(mode: str, steps: int, noise_points: Points) -> float:
    """Variance of the last latent if the first one has that of the noised target."""
    process, remaining, start = reversed_noising(steps, horizon=2.0)

    def exact_score(latent: Tensor, step: int) -> Tensor:
        # f = 2 (x / nu^2 + grad log p) with grad log p = -x / variance.
        return 2 * latent * (1 / 1.3**2 - 1 / noised_variance(remaining[step]))

    noise = noise_points(steps)
    noise[:, 0] *= math.sqrt(start) / 1.3
    with torch.no_grad():
        last = rollout_chain(process, exact_score, noise, mode=mode).latents[:, -1]
    return last[1 : steps + 2].square().sum().item()  # one unit of noise at a time


@pytest.mark.parametrize("mode", ["sample", "flow"])
def test_flow_and_sde_carry_the_same_marginal_with_first_order(
    mode: str, noise_points: Points
) -> None:
    steps = [64, 128, 256, 512]
    errors = [abs(transported_variance(mode, n, noise_points) - 0.25) for n in steps]
    orders = [math.log2(before / after) for before, after in pairwise(errors)]
    assert orders[-1] == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.005


@pytest.mark.parametrize("mode", ["mean", "published"])
def test_other_steps_without_noise_shrink_the_marginal(mode: str, noise_points: Points) -> None:
    variances = [transported_variance(mode, steps, noise_points) for steps in (256, 512)]
    assert variances[1] == pytest.approx(variances[0], rel=0.05)
    assert variances[1] < 0.1
