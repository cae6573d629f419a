"""The pure functions against naive implementations, autograd and their documented ranges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from objectives import functional as fn
from objectives.checks import check_same_shape

SETTINGS = settings(max_examples=40)
SEEDS = st.integers(0, 2**31 - 1)
FACTORS = st.floats(0, 1)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- denoising_gae ----------------------------------------------------------------------------


def random_rollout(seed: int, envs: int, time: int, steps: int) -> dict[str, Tensor]:
    generator = seeded(seed)
    done = torch.rand(envs, time, 1, generator=generator) < 0.3
    terminated = done & (torch.rand(envs, time, 1, generator=generator) < 0.5)
    return {
        "value": normal(generator, envs, time, steps, 1),
        "bootstrap": normal(generator, envs, time, 1),
        "reward": normal(generator, envs, time, 1),
        "log_ratio": normal(generator, envs, time, steps, 1),
        "done": done,
        "terminated": terminated,
    }


def naive_gae(
    data: dict[str, Tensor], env: int, temperature: float, gamma: float, lmbda: float, mode: str
) -> list[list[float]]:
    """Walks the transitions of one environment backwards, one denoising step at a time."""
    value, log_ratio = data["value"][env, ..., 0], data["log_ratio"][env, ..., 0]
    time, steps = value.shape
    advantage = [[0.0] * steps for _ in range(time)]
    running = 0.0
    for t in reversed(range(time)):
        for n in reversed(range(steps)):
            own = -temperature * float(log_ratio[t, n])
            if n == steps - 1:
                end = bool(data["done"][env, t])
                following = 0.0 if data["terminated"][env, t] else float(data["bootstrap"][env, t])
                delta = float(data["reward"][env, t]) + own + gamma * following
                carry = 0.0 if end else gamma * lmbda * running
            else:
                g, lam = (1.0, 1.0) if mode == "env" else (gamma, lmbda)
                delta = own + g * float(value[t, n + 1])
                carry = g * lam * running
            running = delta - float(value[t, n]) + carry
            advantage[t][n] = running
    return advantage


@SETTINGS
@given(
    seed=SEEDS,
    envs=st.integers(1, 3),
    time=st.integers(1, 6),
    steps=st.integers(1, 4),
    temperature=st.floats(0, 2),
    gamma=FACTORS,
    lmbda=FACTORS,
    mode=st.sampled_from(["env", "denoising_step"]),
)
def test_denoising_gae_equals_a_double_loop(
    seed: int,
    envs: int,
    time: int,
    steps: int,
    temperature: float,
    gamma: float,
    lmbda: float,
    mode: fn.DiscountMode,
) -> None:
    data = random_rollout(seed, envs, time, steps)
    estimate = fn.denoising_gae(
        **data, temperature=temperature, gamma=gamma, lmbda=lmbda, discount_mode=mode
    )
    expected = [naive_gae(data, env, temperature, gamma, lmbda, mode) for env in range(envs)]
    wanted = torch.tensor(expected, dtype=torch.float64).unsqueeze(-1)
    assert estimate.advantage.shape == (envs, time, steps, 1)
    torch.testing.assert_close(estimate.advantage, wanted)
    torch.testing.assert_close(estimate.value_target, wanted + data["value"])


@pytest.mark.parametrize("mode", ["env", "denoising_step"])
def test_denoising_gae_of_any_batch_shape(mode: fn.DiscountMode) -> None:
    data = random_rollout(0, 6, 5, 3)
    options = {"temperature": 0.3, "gamma": 0.9, "lmbda": 0.8, "discount_mode": mode}
    flat = fn.denoising_gae(**data, **options)
    folded = {key: value.unflatten(0, (2, 3)) for key, value in data.items()}
    single = {key: value[0] for key, value in data.items()}
    for index in range(2):
        torch.testing.assert_close(
            fn.denoising_gae(**folded, **options)[index].flatten(0, 1), flat[index]
        )
        torch.testing.assert_close(fn.denoising_gae(**single, **options)[index], flat[index][0])


def test_denoising_gae_takes_tensor_factors() -> None:
    data = random_rollout(0, 2, 4, 3)
    plain = fn.denoising_gae(**data, temperature=0.5, gamma=0.75, lmbda=0.25)
    tensors = fn.denoising_gae(
        **data,
        temperature=torch.tensor(0.5),
        gamma=torch.tensor(0.75),
        lmbda=torch.tensor(0.25),
    )
    torch.testing.assert_close(tensors.advantage, plain.advantage)


def test_denoising_gae_keeps_its_dtype_and_the_precision_of_gamma() -> None:
    data = random_rollout(0, 1, 1, 1)
    data["done"][:], data["terminated"][:] = False, False
    out = fn.denoising_gae(**data, temperature=0.0, gamma=0.99, lmbda=0.9)
    expected = data["reward"] + 0.99 * data["bootstrap"]
    torch.testing.assert_close(out.value_target[:, :, 0], expected, rtol=1e-14, atol=1e-14)
    single = {k: v.float() if v.is_floating_point() else v for k, v in data.items()}
    assert (
        fn.denoising_gae(**single, temperature=0.1, gamma=1, lmbda=1).advantage.dtype
        == torch.float32
    )


def test_zero_lambda_is_the_one_step_advantage() -> None:
    data = random_rollout(0, 2, 4, 3)
    options = {"temperature": 0.3, "gamma": 0.9, "lmbda": 0.0}
    stepwise = fn.denoising_gae(**data, **options, discount_mode="denoising_step")
    following = torch.cat((data["value"][..., 1:, :], data["bootstrap"].unsqueeze(-2)), -2)
    alive = torch.ones_like(following)
    alive[..., -1, :] = (~data["terminated"]).double()
    reward = torch.zeros_like(following)
    reward[..., -1, :] = data["reward"]
    expected = reward - 0.3 * data["log_ratio"] + 0.9 * alive * following - data["value"]
    torch.testing.assert_close(stepwise.advantage, expected)


@pytest.mark.parametrize(
    "name", ["value", "bootstrap", "reward", "log_ratio", "done", "terminated"]
)
def test_denoising_gae_rejects_shapes_that_do_not_match(name: str) -> None:
    data = random_rollout(0, 2, 4, 3)
    data[name] = data[name][:1]  # would broadcast
    with pytest.raises(ValueError, match=f"shapes must be equal.*{name}"):
        fn.denoising_gae(**data, temperature=0.1, gamma=0.9, lmbda=0.9)


def test_unknown_discount_mode_raises() -> None:
    data = random_rollout(0, 2, 4, 3)
    with pytest.raises(
        ValueError, match="discount_mode must be one of 'env', 'denoising_step', got 'x'"
    ):
        fn.denoising_gae(**data, temperature=0.1, gamma=0.9, lmbda=0.9, discount_mode="x")


# -- the surrogates ---------------------------------------------------------------------------


@SETTINGS
@given(
    log_weight=st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=12),
    seed=SEEDS,
    epsilon=st.floats(0.01, 0.9),
)
def test_alive_mask_is_where_the_clipped_surrogate_has_a_gradient(
    log_weight: list[float], seed: int, epsilon: float
) -> None:
    weight = torch.tensor(log_weight, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    advantage = normal(seeded(seed), len(log_weight), 1)
    surrogate = fn.clipped_surrogate(weight, advantage, epsilon)
    (gradient,) = torch.autograd.grad(surrogate.loss.sum(), weight)
    assert torch.equal(surrogate.alive, gradient != 0)
    assert not surrogate.alive.requires_grad
    ratio = weight.detach().exp()
    torch.testing.assert_close(gradient[surrogate.alive], (-ratio * advantage)[surrogate.alive])


@SETTINGS
@given(seed=SEEDS, epsilon=st.floats(0.01, 0.9))
def test_clipped_surrogate_is_a_pessimistic_bound(seed: int, epsilon: float) -> None:
    generator = seeded(seed)
    weight, advantage = normal(generator, 9, 1), normal(generator, 9, 1)
    loss = fn.clipped_surrogate(weight, advantage, epsilon).loss
    ratio = weight.exp()
    assert bool((loss >= -ratio * advantage - 1e-12).all())
    for row in range(9):
        r, a = float(ratio[row]), float(advantage[row])
        bounded = max(min(r, 1 + epsilon), 1 - epsilon)
        assert float(loss[row]) == pytest.approx(-min(r * a, bounded * a))


def test_rows_without_advantage_are_alive_inside_the_range_only() -> None:
    weight = torch.tensor([[0.0], [0.05], [1.0], [-1.0]])
    alive = fn.clipped_surrogate(weight, torch.zeros(4, 1), 0.2).alive
    assert alive.squeeze(-1).tolist() == [True, True, False, False]


@SETTINGS
@given(seed=SEEDS, temperature=st.floats(0, 3))
def test_noising_surrogate_gradients(seed: int, temperature: float) -> None:
    generator = seeded(seed)
    weight = normal(generator, 8, 1).requires_grad_()
    log_prob = normal(generator, 8, 1).requires_grad_()
    scale = torch.tensor(temperature, dtype=torch.float64)
    alive = torch.rand(8, 1, generator=generator) < 0.5
    loss = fn.noising_surrogate(weight, alive, log_prob, scale)
    gradient = torch.autograd.grad(loss.sum(), (weight, log_prob), allow_unused=True)
    assert gradient[0] is None
    expected = torch.where(alive, -weight.detach().exp() * temperature, 0.0)
    torch.testing.assert_close(gradient[1], expected)
    torch.testing.assert_close(loss.detach(), expected * log_prob.detach())


def test_refreshed_advantage_replaces_the_own_entropy_term() -> None:
    advantage, old, new = (torch.randn(5, 1, requires_grad=True) for _ in range(3))
    temperature = torch.tensor(0.7)
    refreshed = fn.refreshed_advantage(advantage, old, new, temperature)
    assert not refreshed.requires_grad
    torch.testing.assert_close(refreshed, (advantage + 0.7 * old - 0.7 * new).detach())


# -- advantage normalisation ------------------------------------------------------------------


@SETTINGS
@given(seed=SEEDS, rows=st.integers(2, 20), mode=st.sampled_from(["center", "standardize", None]))
def test_normalised_advantage_of_the_valid_rows(
    seed: int, rows: int, mode: fn.AdvantageNormalization | None
) -> None:
    generator = seeded(seed)
    advantage = 3 * normal(generator, rows, 1) + 2
    valid = torch.rand(rows, 1, generator=generator) < 0.7
    valid[:2] = True
    kept = advantage[valid].unsqueeze(-1)
    advantage[~valid] = math.nan
    masked = fn.normalized_advantage(advantage, mode, valid)
    alone = fn.normalized_advantage(kept, mode)
    torch.testing.assert_close(masked.advantage[valid].unsqueeze(-1), alone.advantage)
    torch.testing.assert_close(masked.scale, alone.scale)
    expected = kept
    if mode is not None:
        expected = kept - kept.mean()
        assert abs(float(alone.advantage.mean())) < 1e-12
    if mode == "standardize":
        expected = expected / kept.std()
        torch.testing.assert_close(alone.scale, kept.std())
    else:
        assert float(alone.scale) == 1
    torch.testing.assert_close(alone.advantage, expected)


@pytest.mark.parametrize("mode", ["center", "standardize"])
@pytest.mark.parametrize("valid", [None, torch.zeros(3, 1, dtype=torch.bool)])
def test_constant_or_absent_advantages_stay_finite(
    mode: fn.AdvantageNormalization, valid: Tensor | None
) -> None:
    out = fn.normalized_advantage(torch.full((3, 1), 2.0), mode, valid)
    assert bool(out.advantage.isfinite().all())
    assert bool(out.scale > 0)


# -- values and diagnostics -------------------------------------------------------------------


@SETTINGS
@given(seed=SEEDS, rows=st.integers(1, 30), scale=st.floats(0, 20))
def test_effective_sample_size_is_in_the_unit_interval(seed: int, rows: int, scale: float) -> None:
    weight = scale * normal(seeded(seed), rows, 1)
    size = float(fn.effective_sample_size(weight))
    assert 1 / rows - 1e-9 <= size <= 1 + 1e-9
    shifted = float(fn.effective_sample_size(weight + 300))  # would overflow as a plain exponential
    assert shifted == pytest.approx(size)
    ratio = (weight - weight.max()).exp()
    assert size == pytest.approx(float(ratio.sum() ** 2 / (ratio**2).sum() / rows))


def test_effective_sample_size_extremes() -> None:
    assert float(fn.effective_sample_size(torch.full((7, 1), 2.0))) == pytest.approx(1)
    one = torch.full((5, 1), -1e4)
    one[2] = 0
    assert float(fn.effective_sample_size(one)) == pytest.approx(0.2)


@SETTINGS
@given(seed=SEEDS, rows=st.integers(2, 30))
def test_diagnostics_count_valid_rows_only(seed: int, rows: int) -> None:
    generator = seeded(seed)
    value, target = normal(generator, rows, 1), normal(generator, rows, 1)
    valid = torch.rand(rows, 1, generator=generator) < 0.6
    valid[0] = True
    kept = [x[valid].unsqueeze(-1) for x in (value, target)]
    fit, size = fn.explained_variance(*kept), fn.effective_sample_size(kept[0])
    value[~valid] = math.nan
    target[~valid] = math.inf
    torch.testing.assert_close(fn.explained_variance(value, target, valid), fit)
    torch.testing.assert_close(fn.effective_sample_size(value, valid), size)


@SETTINGS
@given(seed=SEEDS, rows=st.integers(2, 30), offset=st.floats(-5, 5))
def test_explained_variance(seed: int, rows: int, offset: float) -> None:
    generator = seeded(seed)
    value, target = normal(generator, rows, 1), normal(generator, rows, 1)
    fit = float(fn.explained_variance(value, target))
    assert fit <= 1
    assert fit == pytest.approx(float(1 - (target - value).var() / target.var()))
    assert float(fn.explained_variance(target + offset, target)) == pytest.approx(1, abs=1e-9)
    constant = torch.full_like(target, offset)
    assert float(fn.explained_variance(constant, target)) == pytest.approx(0, abs=1e-9)


def test_explained_variance_of_one_row_is_finite() -> None:
    assert bool(fn.explained_variance(torch.zeros(1, 1), torch.ones(1, 1)).isfinite())


@SETTINGS
@given(seed=SEEDS, clip=st.floats(0.01, 2))
def test_clipped_value_stays_near_the_old_one(seed: int, clip: float) -> None:
    generator = seeded(seed)
    value, old = 2 * normal(generator, 9, 1), normal(generator, 9, 1)
    clipped = fn.clipped_value(value, old, clip)
    assert bool(((clipped - old).abs() <= clip + 1e-12).all())
    near = (value - old).abs() < clip
    torch.testing.assert_close(clipped[near], value[near])
    assert bool((((clipped - old) * (value - old)) >= 0).all())


def test_value_distances() -> None:
    value, target = torch.tensor([[0.0], [0.0]]), torch.tensor([[0.5], [-3.0]])
    for kind, expected in (
        ("l1", [0.5, 3.0]),
        ("l2", [0.25, 9.0]),
        ("smooth_l1", [0.125, 2.5]),
    ):
        assert fn.value_distance(value, target, kind).squeeze(-1).tolist() == expected


ROW, OTHER = torch.ones(4, 1), torch.ones(1, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fn.refreshed_advantage(ROW, ROW, OTHER, torch.ones(())),
        lambda: fn.clipped_surrogate(ROW, OTHER, 0.2),
        lambda: fn.noising_surrogate(ROW, ROW.bool(), OTHER, torch.ones(())),
        lambda: fn.value_distance(ROW, OTHER, "l2"),
        lambda: fn.clipped_value(ROW, OTHER, 0.1),
        lambda: fn.explained_variance(ROW, OTHER),
        lambda: check_same_shape(first=ROW, second=OTHER),
    ],
)
def test_shapes_that_would_broadcast_raise(call) -> None:
    with pytest.raises(ValueError, match=r"shapes must be equal.*\(1, 1\)"):
        call()
