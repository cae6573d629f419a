"""DenoisingGAE: what it reads, where it bootstraps, what it writes."""

import pytest
import torch
from loss_builders import connect, make_networks, make_rollout
from tensordict import TensorDict, TensorDictBase, assert_close
from torchrl.objectives.utils import ValueEstimators

from objectives import DenoisingGAE, DiffPPOLoss, FixedTemperature
from objectives.functional import denoising_gae

STEPS = 3


def make(temperature: float = 0.2, **options) -> DenoisingGAE:
    torch.manual_seed(0)
    actor, critic, _ = make_networks()
    options = {"gamma": 0.9, "lmbda": 0.8, **options}
    return DenoisingGAE(
        value_network=critic, actor=actor, temperature=FixedTemperature(temperature), **options
    )


def run(gae: DenoisingGAE, rollout: TensorDictBase) -> TensorDictBase:
    torch.manual_seed(5)
    return gae(rollout.clone())


def prior_of(gae: DenoisingGAE, batch_size: torch.Size) -> torch.Tensor:
    torch.manual_seed(5)
    return gae.mdp.actor.sample_prior(batch_size)


def value_of(gae: DenoisingGAE, observation, latent, step: int) -> torch.Tensor:
    shape = observation.shape[:-1]
    rows = TensorDict({"observation": observation, "latent": latent}, shape)
    rows["step"] = torch.full((*shape, 1), step)
    with torch.no_grad():
        return gae.value_network(rows)["state_value"]


@pytest.mark.parametrize("mode", ["env", "denoising_step"])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 2, 5), (2, 1)])
def test_writes_estimates_per_denoising_step(mode: str, shape: tuple[int, ...]) -> None:
    gae = make(discount_mode=mode)
    rollout = connect(make_rollout(gae.mdp.actor, shape))
    out = run(gae, rollout)
    fresh = prior_of(gae, rollout.batch_size)
    latents = rollout["latents"]
    value = torch.stack(
        [value_of(gae, rollout["observation"], latents[..., n, :], n) for n in range(STEPS)], -2
    )
    bootstrap = value_of(gae, rollout["next", "observation"], fresh, 0)
    inside = ~rollout["next", "done"]
    inside[..., -1, :] = False
    following = torch.cat((value[..., 1:, 0, :], bootstrap[..., -1:, :]), -2)
    expected = denoising_gae(
        value,
        torch.where(inside, following, bootstrap),
        rollout["next", "reward"],
        rollout["log_ratio"],
        rollout["next", "done"],
        rollout["next", "terminated"],
        temperature=0.2,
        gamma=0.9,
        lmbda=0.8,
        discount_mode=mode,
    )
    torch.testing.assert_close(out["state_value"], value)
    torch.testing.assert_close(out["advantage"], expected.advantage)
    torch.testing.assert_close(out["value_target"], expected.value_target)
    assert out["advantage"].shape == (*shape, STEPS, 1)


def test_bootstraps_from_the_true_last_observation() -> None:
    gae = make(lmbda=0.0)
    rollout = make_rollout(
        gae.mdp.actor, (2, 4)
    )  # next observations differ from the following rows
    rollout["next", "done"] = torch.zeros(2, 4, 1, dtype=torch.bool)
    rollout["next", "terminated"] = torch.zeros(2, 4, 1, dtype=torch.bool)
    rollout["next", "done"][:, 1] = True
    base = run(gae, rollout)["value_target"][..., -1, 0]
    moved = rollout.clone()
    moved["next", "observation"] += 1
    changed = run(gae, moved)["value_target"][..., -1, 0] != base
    # Truncations and the end of the rollout look at the next observation, others at the next row.
    assert changed.tolist() == [[False, True, False, True]] * 2


def test_terminated_rows_do_not_bootstrap() -> None:
    gae = make(temperature=0.0)
    rollout = make_rollout(gae.mdp.actor, (2, 4))
    for key in ("done", "terminated"):
        rollout["next", key] = torch.ones(2, 4, 1, dtype=torch.bool)
    out = run(gae, rollout)
    torch.testing.assert_close(out["value_target"][..., -1, :], rollout["next", "reward"])


def test_value_estimate_does_not_write() -> None:
    gae = make()
    rollout = make_rollout(gae.mdp.actor, (3, 4))
    before = rollout.clone()
    torch.manual_seed(5)
    target = gae.value_estimate(rollout)
    assert set(rollout.keys(True, True)) == set(before.keys(True, True))
    assert_close(rollout, before, rtol=0, atol=0)
    torch.testing.assert_close(target, run(gae, rollout)["value_target"])
    with pytest.raises(TypeError, match="next_value is not accepted"):
        gae.value_estimate(rollout, next_value=torch.zeros(3, 4, 1))


def test_time_must_be_the_last_dimension() -> None:
    gae = make()
    rollout = make_rollout(gae.mdp.actor, (3, 4))
    with pytest.raises(ValueError, match="time dimension must be the last batch dimension"):
        gae(rollout.transpose(0, 1))
    with pytest.raises(ValueError, match=r"batch size \[\*B, T\]"):
        gae(rollout[0, 0])


def test_unnamed_dimensions_have_time_last() -> None:
    gae = make()
    rollout = make_rollout(gae.mdp.actor, (3, 4))
    expected = run(gae, rollout)
    rollout.names = [None, None]
    torch.testing.assert_close(run(gae, rollout)["advantage"], expected["advantage"])


def test_environments_do_not_mix() -> None:
    gae = make()
    rollout = make_rollout(gae.mdp.actor, (3, 4))
    expected = run(gae, rollout)
    changed = rollout.clone()
    changed["next", "reward"][1] += 5
    out = run(gae, changed)
    for env, same in ((0, True), (1, False), (2, True)):
        assert torch.equal(out["advantage"][env], expected["advantage"][env]) == same


def test_in_keys_and_out_keys() -> None:
    gae = make()
    rollout = make_rollout(gae.mdp.actor, (3, 4))
    assert_close(
        run(gae, rollout.select(*gae.in_keys)).select(*gae.out_keys),
        run(gae, rollout).select(*gae.out_keys),
    )
    assert gae.out_keys == ["advantage", "value_target", "state_value"]
    gae.set_keys(advantage=("a", "b"), value_target="y", reward="r")
    assert gae.out_keys == [("a", "b"), "y", "state_value"]
    assert ("next", "r") in gae.in_keys
    out = run(gae, rollout.rename_key_(("next", "reward"), ("next", "r")))
    assert out["a", "b"].shape == out["y"].shape


@pytest.mark.parametrize("differentiable", [False, True])
def test_differentiable(differentiable: bool) -> None:
    gae = make(differentiable=differentiable)
    out = run(gae, make_rollout(gae.mdp.actor, (2, 3)))
    assert out["state_value"].requires_grad == differentiable
    assert out["advantage"].requires_grad == differentiable


def test_parameters_can_be_given() -> None:
    gae = make()
    rollout = make_rollout(gae.mdp.actor, (2, 3))
    plain = run(gae, rollout)
    params = TensorDict.from_module(gae.value_network).detach().clone()
    params.apply_(lambda x: x + 0.1 if x.is_floating_point() else x)
    torch.manual_seed(5)
    other = gae(rollout.clone(), params=params)
    assert not torch.allclose(other["state_value"], plain["state_value"])
    torch.manual_seed(5)
    mixed = gae(rollout.clone(), target_params=params)
    torch.testing.assert_close(mixed["state_value"], plain["state_value"])
    assert not torch.allclose(mixed["advantage"], plain["advantage"])
    torch.testing.assert_close(run(gae, rollout)["advantage"], plain["advantage"])


def test_has_no_parameters_of_its_own() -> None:
    gae = make()
    assert list(gae.parameters()) == []
    assert sorted(gae.state_dict()) == ["gamma", "lmbda"]


@pytest.mark.parametrize("name", ["gamma", "lmbda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_factors_outside_their_range_raise(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got {value}"):
        make(**{name: value})


def test_unknown_discount_mode_raises() -> None:
    with pytest.raises(ValueError, match="discount_mode must be"):
        make(discount_mode="step")


def test_missing_chain_raises() -> None:
    gae = make()
    rollout = make_rollout(gae.mdp.actor, (2, 3))
    with pytest.raises(KeyError, match=r"latents.*return_chain=True"):
        gae(rollout.exclude("latents"))


def test_loss_builds_it_with_defaults_and_options() -> None:
    torch.manual_seed(0)
    actor, critic, _ = make_networks()
    loss = DiffPPOLoss(actor, critic)
    estimator = loss.value_estimator
    assert isinstance(estimator, DenoisingGAE)
    assert float(estimator.gamma) == pytest.approx(0.99)
    assert float(estimator.lmbda) == pytest.approx(0.95)
    assert estimator.discount_mode == "env"
    loss.make_value_estimator(
        ValueEstimators.GAE, gamma=0.5, lmbda=0.25, discount_mode="denoising_step"
    )
    estimator = loss.value_estimator
    assert (float(estimator.gamma), float(estimator.lmbda)) == (0.5, 0.25)
    assert estimator.discount_mode == "denoising_step"
    with pytest.raises(TypeError):
        loss.make_value_estimator(no_such_option=1)


def test_an_estimator_class_can_be_given() -> None:
    torch.manual_seed(0)
    actor, critic, _ = make_networks()
    loss = DiffPPOLoss(actor, critic)
    loss.make_value_estimator(
        DenoisingGAE,
        gamma=0.5,
        lmbda=0.5,
        value_network=critic,
        actor=actor,
        temperature=loss.temperature,
    )
    assert float(loss.value_estimator.gamma) == 0.5
    assert loss.value_type is DenoisingGAE


def test_temperature_of_the_loss_is_read_at_every_call() -> None:
    torch.manual_seed(0)
    actor, critic, _ = make_networks()
    loss = DiffPPOLoss(actor, critic, temperature=0.0)
    rollout = make_rollout(actor, (2, 3))
    before = run(loss.value_estimator, rollout)
    loss.temperature.value.fill_(0.5)
    after = run(loss.value_estimator, rollout)
    assert not torch.allclose(before["advantage"], after["advantage"])


def test_chains_of_another_length_are_refused() -> None:
    actor, critic, _ = make_networks()
    loss = DiffPPOLoss(actor, critic)
    shorter, _, _ = make_networks(steps=2)
    rollout = make_rollout(shorter, (2, 3))
    for use in (loss.value_estimator, loss.chain_rows, loss):
        with pytest.raises(ValueError, match="have 2 denoising steps where 3 are expected"):
            use(rollout)
