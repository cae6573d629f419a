"""DiffPPOLoss against the same loss written out by hand: values and gradients."""

import math

import pytest
import torch
from loss_builders import gradients, make_networks, make_rollout, to_double
from tensordict import TensorDictBase, assert_close
from torch import Tensor
from torch.nn.functional import log_softmax, smooth_l1_loss, softplus

from diffpolicy.networks import HLGauss
from objectives import DiffPPOLoss, FixedTemperature, LearnedTemperature

EPSILON, CRITIC_COEFF, STEPS = 0.15, 0.7, 3


def make_loss(*, support: HLGauss | None = None, seed: int = 0, **options) -> DiffPPOLoss:
    torch.manual_seed(seed)
    actor, critic, _ = make_networks(support=support)
    options = {"clip_epsilon": EPSILON, "critic_coeff": CRITIC_COEFF, **options}
    return DiffPPOLoss(actor, critic, **options).double()


def make_rows(loss: DiffPPOLoss) -> TensorDictBase:
    """Rows of a behaviour policy with other weights than those of ``loss``."""
    behaviour = make_loss(support=loss.value_support)
    with torch.no_grad():
        for parameter in behaviour.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    rollout = to_double(make_rollout(behaviour.actor_network, (4, 6)))
    return loss.chain_rows(behaviour.value_estimator(rollout)).reshape(-1)


def normal_log_prob(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(value; mean, variance), summed over the action."""
    density = -((value - mean) ** 2) / (2 * variance) - 0.5 * (2 * math.pi * variance).log()
    return density.sum(-1)


def kernels(loss: DiffPPOLoss, rows: TensorDictBase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance of q and of p, from the equations of the paper (section 2)."""
    actor = loss.actor_network
    process, step = actor.process, rows["step"].squeeze(-1)
    factor = torch.tensor([1.0, 2 / 3 + 0.17 / 3, 1 / 3 + 0.34 / 3], dtype=torch.float64)
    dt = softplus(process.raw_step_size).squeeze(-1) * factor.float().double()
    eta = dt.unsqueeze(-1) / softplus(process.raw_friction)
    nu = process.prior_std
    score = actor.score_network(rows["latent"], step, rows["observation"])
    mean = rows["latent"] + eta[step] * (-rows["latent"] / nu**2 + score)
    after = torch.minimum(step + 1, torch.tensor(STEPS - 1))
    noising_mean = rows["next_latent"] * (1 - eta[after] / nu**2)
    return mean, 2 * eta[step], noising_mean, 2 * eta[after]


def policy_terms(
    loss: DiffPPOLoss, rows: TensorDictBase, temperature: float, mode: str | None
) -> dict[str, Tensor]:
    mean, variance, noising_mean, noising_variance = kernels(loss, rows)
    log_q = normal_log_prob(rows["next_latent"], mean, variance)
    log_p = normal_log_prob(rows["latent"], noising_mean, noising_variance)
    ratio = (log_q - rows["log_prob"].squeeze(-1)).exp()
    log_ratio = (log_q - log_p).detach()
    advantage = rows["advantage"].squeeze(-1)
    advantage = advantage + temperature * rows["log_ratio"].squeeze(-1) - temperature * log_ratio
    scale = torch.ones(())
    if mode is not None:
        advantage = advantage - advantage.mean()
    if mode == "standardize":
        scale = (advantage.square().sum() / (advantage.numel() - 1)).sqrt()
        advantage = advantage / scale
    objective, noising, clipped = [], [], []
    for rho, a, lp in zip(ratio, advantage, log_p, strict=True):
        bounded = rho.clamp(1 - EPSILON, 1 + EPSILON)
        inside = bool((rho >= 1 - EPSILON) & (rho <= 1 + EPSILON))
        objective.append(-torch.min(rho * a, bounded * a))
        alive = inside or bool(rho * a < bounded * a)
        noising.append(-rho.detach() * temperature / scale * lp if alive else 0 * lp)
        clipped.append(not inside)
    assert any(clipped)
    assert not all(clipped)
    return {
        "loss_objective": torch.stack(objective).mean(),
        "loss_noising": torch.stack(noising).mean(),
        "clip_fraction": torch.tensor(clipped).double().mean(),
        "ESS": ratio.sum() ** 2 / (ratio**2).sum() / ratio.numel(),
        "max_ratio": ratio.max(),
        "kl_approx": STEPS * (ratio - 1 - ratio.log()).mean(),
        "entropy": -STEPS * log_ratio.mean(),
    }


def predict(loss: DiffPPOLoss, rows: TensorDictBase) -> TensorDictBase:
    return loss.critic_network(rows.select("observation", "latent", "step"))


def compare(
    loss: DiffPPOLoss, out: TensorDictBase, expected: dict[str, Tensor], gradient_keys: set[str]
) -> None:
    # The oracle differentiates the networks; their parameters are those of the loss.
    for key, value in expected.items():
        torch.testing.assert_close(
            out[key].detach(), value.detach(), msg=lambda m, k=key: f"{k}: {m}"
        )
    for key in gradient_keys:
        actual, wanted = gradients(loss, out[key]), gradients(loss, expected[key])
        assert set(actual) == set(wanted)
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient, wanted[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mode", [None, "center", "standardize"])
@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_policy_terms(temperature: float, mode: str | None) -> None:
    loss = make_loss(temperature=temperature, advantage_normalization=mode)
    rows = make_rows(loss)
    expected = policy_terms(loss, rows, temperature, mode)
    keys = {"loss_objective"} if temperature == 0 else {"loss_objective", "loss_noising"}
    compare(loss, loss(rows), expected, keys)


def test_default_normalization_centres() -> None:
    loss = make_loss(temperature=0.4)
    rows = make_rows(loss)
    compare(loss, loss(rows), policy_terms(loss, rows, 0.4, "center"), {"loss_objective"})


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_scalar_critic(kind: str, clip: float | None) -> None:
    loss = make_loss(loss_critic_type=kind, clip_value=clip)
    rows = make_rows(loss)
    value = predict(loss, rows)["state_value"]
    target, old = rows["value_target"], rows["state_value"]

    def distance(prediction: Tensor) -> Tensor:
        error = (prediction - target).abs()
        quadratic = torch.where(error < 1, 0.5 * error**2, error - 0.5)
        return {"l1": error, "l2": error**2, "smooth_l1": quadratic}[kind]

    per_row = distance(value)
    if clip is not None:
        bounded = torch.minimum(torch.maximum(value, old - clip), old + clip)
        assert bool((bounded != value).any())
        per_row = torch.maximum(per_row, distance(bounded))
    expected = {
        "loss_critic": CRITIC_COEFF * per_row.mean(),
        "explained_variance": 1 - (target - value).var() / target.var(),
    }
    compare(loss, loss(rows), expected, {"loss_critic"})


def test_hl_gauss_critic() -> None:
    low, high, bins = -2.0, 3.0, 10
    loss = make_loss(support=HLGauss(low, high, bins))
    rows = make_rows(loss)
    target = rows["value_target"].clamp(low, high)
    assert bool((target != rows["value_target"]).any())
    width = (high - low) / bins
    normal = torch.distributions.Normal(target, 0.75 * width)
    cdf = [normal.cdf(torch.tensor(low + i * width, dtype=torch.float64)) for i in range(bins + 1)]
    mass = torch.cat([cdf[i + 1] - cdf[i] for i in range(bins)], -1)
    probabilities = mass / (cdf[-1] - cdf[0])
    out = predict(loss, rows)
    cross_entropy = -(probabilities * log_softmax(out["state_value_logits"], -1)).sum(-1)
    centres = torch.tensor([low + (i + 0.5) * width for i in range(bins)], dtype=torch.float64)
    value = (out["state_value_logits"].softmax(-1) * centres).sum(-1, keepdim=True)
    error = rows["value_target"] - value
    expected = {
        "loss_critic": CRITIC_COEFF * cross_entropy.mean(),
        "explained_variance": 1 - error.var() / rows["value_target"].var(),
    }
    compare(loss, loss(rows), expected, {"loss_critic"})


def test_exact_kl_is_that_of_the_chains() -> None:
    loss = make_loss()
    rows = make_rows(loss)
    mean, variance, _, _ = kernels(loss, rows)
    old = torch.distributions.Normal(rows["kernel_mean"], rows["kernel_std"])
    new = torch.distributions.Normal(mean, variance.sqrt())
    kl = torch.distributions.kl_divergence(old, new).sum(-1)
    per_chain = kl.reshape(-1, STEPS).sum(-1)
    torch.testing.assert_close(loss(rows)["kl"], per_chain.mean().detach())


@pytest.mark.parametrize("offset", [-1.0, 1.0])
def test_learned_temperature_falls_iff_the_entropy_is_above_its_target(offset: float) -> None:
    loss = make_loss()
    rows = make_rows(loss)
    entropy = float(loss(rows)["entropy"])
    temperature = LearnedTemperature(0.4, target_entropy=entropy - offset)
    learned = make_loss(temperature=temperature)
    out = learned(rows)
    expected = policy_terms(learned, rows, 0.4, "center")
    alpha = temperature.log_alpha.exp()
    expected["loss_alpha"] = alpha * offset
    expected["alpha"] = alpha
    compare(learned, out, expected, {"loss_objective", "loss_noising", "loss_alpha"})
    torch.optim.SGD([temperature.log_alpha], 0.1).zero_grad()
    out["loss_alpha"].backward()
    torch.optim.SGD([temperature.log_alpha], 0.1).step()
    assert (float(temperature()) < 0.4) == (offset > 0)


def test_advantages_of_the_loss_are_constants() -> None:
    loss = make_loss(temperature=0.4)
    rows = make_rows(loss)
    for key in ("advantage", "value_target", "log_ratio"):
        rows[key] = rows[key].clone().requires_grad_()
    out = loss(rows)
    inputs = [rows["advantage"], rows["log_ratio"]]
    grads = torch.autograd.grad(out["loss_objective"], inputs, allow_unused=True)
    assert grads == (None, None)


def test_schedulable_coefficients() -> None:
    loss = make_loss(temperature=0.4)
    rows = make_rows(loss)
    before = loss(rows)
    loss.clip_epsilon = 1e6
    loss.critic_coeff = 2 * CRITIC_COEFF
    after = loss(rows)
    torch.testing.assert_close(after["loss_critic"], 2 * before["loss_critic"])
    assert float(after["clip_fraction"]) == 0
    assert float(before["clip_fraction"]) > 0
    assert loss.state_dict()["clip_epsilon"] == 1e6


def test_rollout_with_advantages_equals_its_rows() -> None:
    loss = make_loss(temperature=0.4)
    rollout = to_double(make_rollout(loss.actor_network, (4, 6)))
    loss.value_estimator(rollout)
    assert_close(loss(rollout), loss(loss.chain_rows(rollout).reshape(-1)))


def test_rollout_without_advantages_estimates_them() -> None:
    loss = make_loss(temperature=0.4)
    rollout = to_double(make_rollout(loss.actor_network, (4, 6)))
    torch.manual_seed(3)
    out = loss(rollout)
    torch.manual_seed(3)
    assert_close(out, loss(loss.value_estimator(rollout)))


def test_rows_without_advantages_raise() -> None:
    loss = make_loss()
    rows = make_rows(loss)
    for key in ("advantage", "value_target"):
        with pytest.raises(KeyError, match=f"{key}.*call loss.value_estimator"):
            loss(rows.exclude(key))
    for key in ("log_prob", "log_ratio", "kernel_mean", "kernel_std"):
        with pytest.raises(KeyError, match=key):
            loss(rows.exclude(key))


def test_critic_without_the_value_key_raises() -> None:
    loss = make_loss()
    rollout = to_double(make_rollout(loss.actor_network, (4, 6)))
    with pytest.raises(KeyError, match="no_such_value"):
        loss.set_keys(value="no_such_value")
    torch.manual_seed(0)
    actor, critic, _ = make_networks(value_keys=["other_value"])
    loss = DiffPPOLoss(actor, critic).double()
    with pytest.raises(KeyError, match="state_value"):
        loss(rollout)
    loss.set_keys(value="other_value")
    assert bool(loss(rollout)["loss_critic"].isfinite())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_epsilon": 0.0}, "clip_epsilon must be positive, got 0.0"),
        ({"loss_critic_type": "huber"}, "loss_critic_type must be"),
        ({"clip_value": -1.0}, "clip_value must be positive.*got -1.0"),
        ({"advantage_normalization": "mean"}, "advantage_normalization must be"),
        ({"reduction": "max"}, "reduction must be"),
        ({"temperature": -0.1}, "temperature must be a finite number >= 0, got -0.1"),
    ],
)
def test_bad_options_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loss(**options)


def test_clip_value_needs_a_scalar_critic() -> None:
    with pytest.raises(ValueError, match=r"clip_value.*needs a scalar critic"):
        make_loss(support=HLGauss(-1.0, 1.0, 5), clip_value=0.1)


def test_actor_must_be_a_chain_actor() -> None:
    _, critic, _ = make_networks()
    with pytest.raises(TypeError, match="ChainActor"):
        DiffPPOLoss(critic, critic)


def test_temperature_module_is_taken_as_it_is() -> None:
    temperature = FixedTemperature(0.3)
    assert make_loss(temperature=temperature).temperature is temperature


def test_smooth_l1_is_torch_s() -> None:
    loss = make_loss(critic_coeff=1.0)
    rows = make_rows(loss)
    value = predict(loss, rows)["state_value"]
    torch.testing.assert_close(
        loss(rows)["loss_critic"], smooth_l1_loss(value, rows["value_target"])
    )
