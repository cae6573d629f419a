"""Step sizes, friction and the two kernels of the denoising process."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from diffpolicy.sde import SCHEDULES, DenoisingProcess, rollout_chain

pytestmark = pytest.mark.usefixtures("float64")


@given(
    ratio=st.floats(0.6, 1e3),
    step_size=st.floats(1e-6, 1e3),
    friction=st.floats(1e-6, 1e3),
    schedule=st.sampled_from(sorted(SCHEDULES)),
)
def test_initial_values_are_those_asked_for(
    ratio: float, step_size: float, friction: float, schedule: str
) -> None:
    prior_std = math.sqrt(ratio * step_size / friction)
    process = DenoisingProcess(
        2, 4, prior_std=prior_std, step_size=step_size, friction=friction, schedule=schedule
    )

    assert process.prior_std.item() == pytest.approx(prior_std)
    torch.testing.assert_close(process.friction, torch.full((2,), friction))
    expected = step_size / friction * SCHEDULES[schedule](4)
    torch.testing.assert_close(process.step_sizes(), expected.unsqueeze(-1).expand(4, 2))


def test_expanding_chains_are_refused() -> None:
    DenoisingProcess(1, 4, prior_std=0.5, step_size=0.99, friction=2.0)
    with pytest.raises(ValueError, match=r"= 0.5 must be below 2 prior_std\^2 = 0.5"):
        DenoisingProcess(1, 4, prior_std=0.5, step_size=1.0, friction=2.0)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("learn_step_size", [False, True])
@pytest.mark.parametrize("learn_friction", [False, True])
def test_step_size_and_friction_learn_when_asked(
    per_step: bool, learn_step_size: bool, learn_friction: bool
) -> None:
    process = DenoisingProcess(
        2,
        4,
        step_size_per_step=per_step,
        learn_step_size=learn_step_size,
        learn_friction=learn_friction,
    )
    assert process.raw_step_size.shape == ((4, 1) if per_step else (1, 1))
    assert process.raw_friction.shape == (2,)
    if not (learn_step_size or learn_friction):
        assert not process.step_sizes().requires_grad
        return

    process.step_sizes().square().sum().backward()

    for parameter, learned in (
        (process.raw_step_size, learn_step_size),
        (process.raw_friction, learn_friction),
    ):
        assert (parameter.grad is not None) == learned
        if learned:
            assert (parameter.grad != 0).all()


def test_step_sizes_are_per_dimension_and_per_step() -> None:
    process = DenoisingProcess(2, 3, schedule="constant", step_size_per_step=True)
    step_size, friction = torch.tensor([0.1, 0.2, 0.4]), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        process.raw_step_size.copy_(step_size.expm1().log().unsqueeze(-1))
        process.raw_friction.copy_(friction.expm1().log())
    torch.testing.assert_close(process.step_sizes(), step_size.unsqueeze(-1) / friction)


def test_noising_index() -> None:
    step = torch.arange(4)
    following = DenoisingProcess(1, 4, noising_step="next").noising_index(step)
    same = DenoisingProcess(1, 4, noising_step="same").noising_index(step)
    assert following.tolist() == [1, 2, 3, 3]
    assert same.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("noising_step", "moved_log_p"), [("next", [False, True, True]), ("same", [False, False, True])]
)
def test_last_step_size_moves_the_kernels_that_use_it(
    noising_step: str, moved_log_p: list[bool]
) -> None:
    process = DenoisingProcess(2, 3, step_size_per_step=True, noising_step=noising_step)
    latents, score, steps = torch.randn(4, 2), torch.randn(3, 2), torch.arange(3)

    def log_densities() -> tuple[torch.Tensor, torch.Tensor]:
        q = process.denoising_kernel(latents[:-1], score, steps)
        p = process.noising_kernel(latents[1:], steps)
        return Normal(*q).log_prob(latents[1:]).sum(-1), Normal(*p).log_prob(latents[:-1]).sum(-1)

    log_q, log_p = log_densities()
    with torch.no_grad():
        process.raw_step_size[-1] += 0.5
    new_log_q, new_log_p = log_densities()

    assert (new_log_q != log_q).tolist() == [False, False, True]
    assert (new_log_p != log_p).tolist() == moved_log_p


@pytest.mark.parametrize("noising_step", ["same", "next"])
def test_kernels_follow_their_formulas(noising_step: str) -> None:
    process = DenoisingProcess(
        2, 4, prior_std=1.7, step_size_per_step=True, noising_step=noising_step
    )
    with torch.no_grad():
        process.raw_step_size.normal_()
        process.raw_friction.normal_()
    process.set_noise_scale(0.3)
    eta = process.step_sizes()
    x, score = torch.randn(2, 7, 2)
    step = torch.tensor([0, 1, 2, 3, 3, 0, 2])

    denoising = process.denoising_kernel(x, score, step)
    noising = process.noising_kernel(x, step)

    m = step if noising_step == "same" else torch.tensor([1, 2, 3, 3, 3, 1, 3])
    torch.testing.assert_close(denoising.mean, x + eta[step] * (-x / 1.7**2 + score))
    torch.testing.assert_close(denoising.std.square(), 2 * 0.3**2 * eta[step])
    torch.testing.assert_close(noising.mean, x * (1 - eta[m] / 1.7**2))
    torch.testing.assert_close(noising.std.square(), 2 * 0.3**2 * eta[m])


@pytest.mark.parametrize("batch_size", [(), (3,), (2, 3)])
def test_sample_prior_shape_scale_and_injected_noise(batch_size: tuple[int, ...]) -> None:
    process = DenoisingProcess(2, 4, prior_std=3.0)
    noise = torch.randn(*batch_size, 2)
    assert process.sample_prior(batch_size).shape == (*batch_size, 2)
    torch.testing.assert_close(process.sample_prior(batch_size, noise), 3 * noise)
    spread = process.sample_prior((20_000,)).std().item()
    assert spread == pytest.approx(3.0, rel=4 / math.sqrt(2 * 40_000))


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    trained=st.integers(1, 32),
    used=st.integers(1, 64),
)
def test_another_number_of_steps_keeps_the_diffusion_time(
    schedule: str, trained: int, used: int
) -> None:
    process = DenoisingProcess(2, trained, schedule=schedule)
    before = process.step_sizes()

    process.set_denoising_steps(used)

    assert process.denoising_steps == used
    assert process.trained_steps == trained
    assert process.step_sizes().shape == (used, 2)
    torch.testing.assert_close(process.step_sizes().sum(0), before.sum(0))
    network_steps = [process.network_step(step) for step in range(used)]
    assert network_steps == sorted(network_steps)
    assert set(network_steps) <= set(range(trained))
    if used >= trained:
        assert set(network_steps) == set(range(trained))
    process.set_denoising_steps(trained)
    torch.testing.assert_close(process.step_sizes(), before, rtol=0, atol=0)
    assert [process.network_step(step) for step in range(trained)] == list(range(trained))


def test_changed_steps_keep_dtype_and_gradient() -> None:
    process = DenoisingProcess(1, 8).float()
    process.set_denoising_steps(3)
    chain = rollout_chain(process, lambda x, n: -x, torch.randn(5, 4, 1, dtype=torch.float32))
    assert chain.latents.shape == (5, 4, 1)
    assert chain.latents.dtype == torch.float32
    chain.log_ratio.sum().backward()
    assert process.raw_step_size.grad.isfinite().all()


def test_steps_with_sizes_of_their_own_cannot_change_in_number() -> None:
    process = DenoisingProcess(1, 4, step_size_per_step=True)
    process.set_denoising_steps(4)
    with pytest.raises(ValueError, match=r"denoising_steps=8 .*step_size_per_step=True.* to 4"):
        process.set_denoising_steps(8)
    assert process.denoising_steps == 4


def test_changed_steps_below_one_are_refused() -> None:
    process = DenoisingProcess(1, 4)
    with pytest.raises(ValueError, match="denoising_steps must be at least 1, got 0"):
        process.set_denoising_steps(0)
    assert process.denoising_steps == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action_dim": 0}, "action_dim must be at least 1, got 0"),
        ({"denoising_steps": 0}, "denoising_steps must be at least 1, got 0"),
        ({"prior_std": 0.0}, "prior_std must be a positive finite number, got 0.0"),
        ({"prior_std": math.inf}, "prior_std must be a positive finite number, got inf"),
        ({"step_size": -0.1}, "step_size must be a positive finite number, got -0.1"),
        ({"step_size": math.nan}, "step_size must be a positive finite number, got nan"),
        ({"friction": 0.0}, "friction must be a positive finite number, got 0.0"),
        ({"noising_step": "previous"}, "noising_step must be 'same' or 'next', got 'previous'"),
        ({"schedule": "quadratic"}, "schedule must be one of .* got 'quadratic'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoisingProcess(**{"action_dim": 2, "denoising_steps": 4, **arguments})


def test_state_dict_round_trip() -> None:
    source = DenoisingProcess(2, 4, prior_std=3.0, step_size_per_step=True)
    with torch.no_grad():
        source.raw_step_size.normal_()
        source.raw_friction.normal_()
    target = DenoisingProcess(2, 4, step_size_per_step=True)

    target.load_state_dict(source.state_dict())

    assert torch.equal(target.step_sizes(), source.step_sizes())
    assert target.prior_std.item() == 3.0


def test_state_dict_of_a_process_with_changed_steps_restores_them() -> None:
    source, target = DenoisingProcess(2, 4), DenoisingProcess(2, 4)
    source.set_denoising_steps(9)
    target.load_state_dict(source.state_dict())
    assert target.denoising_steps == 9
    assert torch.equal(target.step_sizes(), source.step_sizes())
    assert [target.network_step(n) for n in range(9)] == [source.network_step(n) for n in range(9)]
    target.set_denoising_steps(4)
    torch.testing.assert_close(target.step_sizes(), DenoisingProcess(2, 4).step_sizes())


def test_state_dict_restores_the_factors_of_another_schedule() -> None:
    source = DenoisingProcess(2, 4, schedule=lambda steps: torch.linspace(3, 2, steps))
    target = DenoisingProcess(2, 4)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.step_sizes(), source.step_sizes())


def test_state_dict_without_factors_leaves_the_steps_in_use() -> None:
    old = DenoisingProcess(2, 4, friction=0.5).state_dict()
    old = {name: old[name] for name in ("raw_step_size", "raw_friction", "prior_std")}
    target = DenoisingProcess(2, 4)
    target.set_denoising_steps(9)
    before = target.schedule_factors.clone()
    target.load_state_dict(old)
    assert torch.equal(target.schedule_factors, before)
    torch.testing.assert_close(target.friction, torch.full((2,), 0.5))


def test_state_dict_of_old_has_a_noise_scale_of_one() -> None:
    old = DenoisingProcess(2, 4).state_dict()
    del old["noise_scale"]
    target = DenoisingProcess(2, 4)
    target.set_noise_scale(0.5)
    target.load_state_dict(old)
    assert float(target.noise_scale) == 1


@pytest.mark.parametrize("noise_scale", [0.0, -1.0, math.inf])
def test_noise_scales_are_positive(noise_scale: float) -> None:
    with pytest.raises(ValueError, match="noise_scale must be a positive finite number"):
        DenoisingProcess(2, 4).set_noise_scale(noise_scale)


def test_a_smaller_noise_scale_draws_closer_to_the_same_means() -> None:
    process = DenoisingProcess(2, 3)
    latent, score, steps = torch.randn(3, 2), torch.randn(3, 2), torch.arange(3)
    before = process.denoising_kernel(latent, score, steps)
    process.set_noise_scale(0.25)
    after = process.denoising_kernel(latent, score, steps)
    torch.testing.assert_close(after.mean, before.mean)
    torch.testing.assert_close(after.std, 0.25 * before.std)


def test_state_dict_of_another_number_of_trained_steps_is_refused() -> None:
    source, target = DenoisingProcess(2, 8), DenoisingProcess(2, 4)
    source.set_denoising_steps(4)
    with pytest.raises(ValueError, match=r"trained with 8 .* this one has 4; .*denoising_steps=8"):
        target.load_state_dict(source.state_dict())


def test_reset_parameters_restores_the_initial_values() -> None:
    process = DenoisingProcess(2, 4, step_size_per_step=True, step_size=0.3, friction=0.7)
    before = process.step_sizes().detach()
    with torch.no_grad():
        process.raw_step_size.normal_()
        process.raw_friction.normal_()
    process.reset_parameters()
    torch.testing.assert_close(process.step_sizes(), before)


def test_deepcopy_is_independent() -> None:
    process = DenoisingProcess(2, 4)
    twin = copy.deepcopy(process)
    twin.set_denoising_steps(6)
    with torch.no_grad():
        twin.raw_friction += 1
    assert process.denoising_steps == 4
    assert (twin.friction > process.friction).all()


def test_repr_names_the_sizes() -> None:
    text = repr(DenoisingProcess(2, 4, prior_std=2.5, noising_step="same"))
    assert "action_dim=2, denoising_steps=4, prior_std=2.5, noising_step='same'" in text
