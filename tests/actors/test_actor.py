"""The diffusion actor: shapes, keys, chains, exploration, determinism, state."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import (
    ActionSquash,
    ActorKeys,
    ChainActor,
    DenoisingActor,
    DenoisingStepActor,
    chain_rows,
    observation_keys,
)
from diffpolicy.sde import DenoisingProcess, Gaussian, gaussian_log_prob

RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
BATCHES = [(), (5,), (3, 5)]
NESTED = ActorKeys(
    action=("agent", "act"),
    latents=("chain", "latents"),
    log_prob=("chain", "log_prob"),
    log_ratio=("chain", "log_ratio"),
    kernel_mean=("chain", "mean"),
    kernel_std=("chain", "std"),
    entropy_bound=("chain", "bound"),
    latent=("row", "latent"),
    next_latent=("row", "next_latent"),
    step=("row", "step"),
)

Actor = Callable[..., DenoisingActor]
Data = Callable[..., TensorDict]


class PlainScore(nn.Module):
    """A user's score network: the smallest interface, without condition()."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Tensor] = []
        self.net = nn.Linear(2 + 3 + 1, 2)

    def forward(self, latent: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        self.steps.append(step)
        return self.net(torch.cat((latent, observation, step.unsqueeze(-1).to(latent)), -1)).tanh()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
def test_shapes_for_any_batch(
    make_actor: Actor, make_data: Data, batch: tuple[int, ...], exploration: ExplorationType
) -> None:
    actor = make_actor(return_chain=True, return_entropy_bound=True)

    with set_exploration_type(exploration):
        out = actor(make_data(*batch))

    assert out.batch_size == batch
    shapes = {key: tuple(out[key].shape) for key in actor.out_keys}
    assert shapes == {
        "action": (*batch, 2),
        "latents": (*batch, 5, 2),
        "log_prob": (*batch, 4, 1),
        "log_ratio": (*batch, 4, 1),
        "kernel_mean": (*batch, 4, 2),
        "kernel_std": (*batch, 4, 2),
        "entropy_bound": (*batch, 1),
    }
    assert all(out[key].isfinite().all() for key in actor.out_keys)


def test_without_chain_only_the_action_is_written(make_actor: Actor, make_data: Data) -> None:
    actor = make_actor()
    assert actor.out_keys == ["action"]
    assert set(actor(make_data(5)).keys()) == {"observation", "action"}


@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
@pytest.mark.parametrize("deterministic_step", ["mean", "flow", "published"])
def test_action_does_not_depend_on_what_is_returned(
    make_actor: Actor, make_data: Data, exploration: ExplorationType, deterministic_step: str
) -> None:
    full = make_actor(
        return_chain=True,
        return_entropy_bound=True,
        noise_key="noise",
        deterministic_step=deterministic_step,
    )
    short = make_actor(noise_key="noise", deterministic_step=deterministic_step)
    short.load_state_dict(full.state_dict())
    data = make_data(5, noise=True)
    with set_exploration_type(exploration):
        torch.testing.assert_close(short(data.clone())["action"], full(data.clone())["action"])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_actions_stay_inside_asymmetric_bounds(
    make_actor: Actor, make_data: Data, scale: float
) -> None:
    actor = make_actor(noise_key="noise").float()
    data = make_data(500, noise=True).float()
    data["noise"] *= scale
    with set_exploration_type(RANDOM):
        action = actor(data)["action"]
    assert (action >= torch.tensor([-2.0, 0.1])).all()
    assert (action <= torch.tensor([2.0, 0.3])).all()
    if scale > 1:
        assert action.amin(0).tolist() == pytest.approx([-2.0, 0.1])
        assert action.amax(0).tolist() == pytest.approx([2.0, 0.3])


def test_action_is_the_squashed_last_latent(make_actor: Actor, make_data: Data) -> None:
    actor = make_actor(return_chain=True)
    out = actor(make_data(5))
    last = out["latents"][:, -1].tanh()
    expected = last * torch.tensor([2.0, 0.1]) + torch.tensor([0.0, 0.2])
    torch.testing.assert_close(out["action"], expected.double(), atol=1e-7, rtol=0)


def test_observation_keys_are_concatenated_in_order(make_actor: Actor) -> None:
    several = make_actor(
        in_keys=["position", ("sensors", "speed")], noise_key="noise", observation_dim=3
    )
    single = make_actor(noise_key="noise")
    single.load_state_dict(several.state_dict())
    position, speed = torch.randn(5, 2).double(), torch.randn(5, 1).double()
    noise = torch.randn(5, 5, 2).double()
    data = TensorDict({"position": position, "sensors": {"speed": speed}, "noise": noise}, [5])
    joined = TensorDict({"observation": torch.cat((position, speed), -1), "noise": noise}, [5])

    with set_exploration_type(RANDOM):
        assert torch.equal(several(data)["action"], single(joined)["action"])


def test_missing_observation_names_what_is_there(make_actor: Actor) -> None:
    actor = make_actor(in_keys=["observation", ("sensors", "speed")])
    data = TensorDict(
        {"observation": torch.zeros(5, 2), "sensors": {"height": torch.zeros(5)}}, [5]
    )
    with pytest.raises(KeyError, match=r"sensors.*speed.*is missing.*height.*observation"):
        actor(data)


def test_missing_noise_is_not_replaced(make_actor: Actor, make_data: Data) -> None:
    with pytest.raises(KeyError, match=r"'nois' is missing.*observation"):
        make_actor(noise_key="nois")(make_data(5))


@pytest.mark.parametrize("key", ["latent", "step"])
def test_missing_entries_of_rows_are_named(make_actor: Actor, make_data: Data, key: str) -> None:
    actor = make_actor(return_chain=True)
    rows = chain_rows(actor(make_data(5))).exclude(key)
    with pytest.raises(KeyError, match=f"'{key}' is missing"):
        actor.denoising_kernel(rows)
    with pytest.raises(KeyError, match=f"'{key}' is missing"):
        DenoisingStepActor(actor)(rows)
    with pytest.raises(KeyError, match="'next_latent' is missing"):
        actor.noising_kernel(rows.exclude("next_latent").set("step", torch.zeros(5, 4, 1).long()))


@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_every_key_may_be_nested(make_actor: Actor, batch: tuple[int, ...]) -> None:
    options = {"return_chain": True, "return_entropy_bound": True}
    nested = make_actor(
        in_keys=[("agent", "observation")], keys=NESTED, noise_key=("n", "z"), **options
    )
    plain = make_actor(noise_key="noise", **options)
    plain.load_state_dict(nested.state_dict())
    observation = torch.randn(*batch, 3).double()
    noise = torch.randn(*batch, 5, 2).double()
    data = TensorDict({"agent": {"observation": observation}, "n": {"z": noise}}, batch)

    with set_exploration_type(RANDOM):
        out = nested(data)
        expected = plain(TensorDict({"observation": observation, "noise": noise}, batch))

    assert nested.out_keys == [
        NESTED.action,
        NESTED.latents,
        NESTED.log_prob,
        NESTED.log_ratio,
        NESTED.kernel_mean,
        NESTED.kernel_std,
        NESTED.entropy_bound,
    ]
    for own, key in zip(nested.out_keys, plain.out_keys, strict=True):
        assert torch.equal(out[own], expected[key])
    rows = chain_rows(out, observation_keys=nested.in_keys, keys=NESTED)
    kernel = nested.denoising_kernel(rows)
    torch.testing.assert_close(kernel.mean, out[NESTED.kernel_mean])
    noising = nested.noising_kernel(rows)
    log_p = gaussian_log_prob(rows[NESTED.latent], noising)
    torch.testing.assert_close(out[NESTED.log_prob] - log_p, out[NESTED.log_ratio])


@pytest.mark.parametrize("noising_step", ["same", "next"])
@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("custom", [False, True])
def test_chain_agrees_with_the_kernels_of_its_rows(
    make_actor: Actor,
    make_data: Data,
    noising_step: str,
    exploration: ExplorationType,
    batch: tuple[int, ...],
    custom: bool,
) -> None:
    actor = make_actor(
        return_chain=True,
        process={"noising_step": noising_step, "step_size_per_step": True},
        score_network=PlainScore() if custom else None,
    )
    with torch.no_grad():
        actor.process.raw_step_size.add_(torch.rand(4, 1))
    with set_exploration_type(exploration):
        out = actor(make_data(*batch))

    rows = chain_rows(out)
    denoising, noising = actor.denoising_kernel(rows), actor.noising_kernel(rows)

    assert rows.batch_size == (*batch, 4)
    torch.testing.assert_close(denoising.mean, out["kernel_mean"])
    torch.testing.assert_close(denoising.std, out["kernel_std"])
    log_q = gaussian_log_prob(rows["next_latent"], denoising)
    torch.testing.assert_close(log_q, out["log_prob"])
    log_p = gaussian_log_prob(rows["latent"], noising)
    torch.testing.assert_close(log_q - log_p, out["log_ratio"])


def test_log_prob_of_the_chain_is_that_of_hand_written_normals(
    make_actor: Actor, make_data: Data
) -> None:
    actor = make_actor(return_chain=True)
    data = make_data(6)
    with set_exploration_type(RANDOM):
        out = actor(data)
    eta, nu, x = actor.process.step_sizes(), actor.process.prior_std, out["latents"]
    for n in range(4):
        score = actor.score_network(x[:, n], torch.full((6,), n), data["observation"])
        m = min(n + 1, 3)
        q = Normal(x[:, n] + eta[n] * (score - x[:, n] / nu**2), (2 * eta[n]).sqrt())
        p = Normal(x[:, n + 1] * (1 - eta[m] / nu**2), (2 * eta[m]).sqrt())
        log_q = q.log_prob(x[:, n + 1]).sum(-1, keepdim=True)
        log_p = p.log_prob(x[:, n]).sum(-1, keepdim=True)
        torch.testing.assert_close(out["log_prob"][:, n], log_q)
        torch.testing.assert_close(out["log_ratio"][:, n], log_q - log_p)


def test_entropy_bound_without_score_is_known_on_every_path(
    make_actor: Actor, make_data: Data
) -> None:
    class Zero(nn.Module):
        def forward(self, latent: Tensor, step: Tensor, observation: Tensor) -> Tensor:
            return torch.zeros_like(latent)

    actor = make_actor(
        score_network=Zero(),
        process={"noising_step": "same", "prior_std": 1.5},
        return_chain=True,
        return_entropy_bound=True,
    )
    with set_exploration_type(RANDOM):
        out = actor(make_data(20))

    x, eta = out["latents"], actor.process.step_sizes()[:, :1]
    square = x.square().sum(-1, keepdim=True)
    drop = (eta * (square[:, :-1] - square[:, 1:]) / (4 * 1.5**4)).sum(-2)
    log_prior = Normal(0.0, 1.5).log_prob(x[:, -1]).sum(-1, keepdim=True)
    log_det = (1 - x[:, -1].tanh() ** 2).log().sum(-1, keepdim=True)
    torch.testing.assert_close(out["entropy_bound"], -(log_prior - log_det - drop))


def test_entropy_bound_is_below_the_entropy_of_the_uniform(
    make_actor: Actor, make_data: Data
) -> None:
    actor = make_actor(return_entropy_bound=True)
    with set_exploration_type(RANDOM), torch.no_grad():
        bound = actor(make_data(4000))["entropy_bound"].mean().item()
    assert bound < 2 * torch.tensor(2.0).log().item()


@pytest.mark.parametrize("kind", ["DETERMINISTIC", "MODE", "MEAN", "MEDIAN"])
@pytest.mark.parametrize("deterministic_step", ["mean", "flow", "published"])
def test_deterministic_chain_starts_at_zero_and_repeats(
    make_actor: Actor, make_data: Data, kind: str, deterministic_step: str
) -> None:
    actor = make_actor(return_chain=True, deterministic_step=deterministic_step)
    data = make_data(5)
    with set_exploration_type(ExplorationType[kind]):
        first, second = actor(data.clone()), actor(data.clone())

    assert torch.equal(first["latents"], second["latents"])
    assert (first["latents"][:, 0] == 0).all()
    x = torch.zeros(5, 2).double()
    pull, share = {"mean": (1, 1), "flow": (0, 0.5), "published": (1, 0.5)}[deterministic_step]
    for n, eta in enumerate(actor.process.step_sizes()):
        score = actor.score_network(x, torch.full((5,), n), data["observation"])
        x = x + eta * (share * score - pull * x / actor.process.prior_std**2)
    torch.testing.assert_close(first["latents"][:, -1], x)


@pytest.mark.parametrize("deterministic_step", ["mean", "flow", "published"])
def test_deterministic_chain_takes_its_start_only_from_given_noise(
    make_actor: Actor, make_data: Data, deterministic_step: str
) -> None:
    actor = make_actor(noise_key="noise", deterministic_step=deterministic_step)
    data = make_data(5, noise=True)
    other = data.clone()
    other["noise"][:, 1:] += 1
    moved = data.clone()
    moved["noise"][:, 0] += 1
    with set_exploration_type(DETERMINISTIC):
        action = actor(data)["action"]
        assert torch.equal(actor(other)["action"], action)
        assert (actor(moved)["action"] != action).all()


def test_without_noise_the_mean_is_followed_by_default(make_actor: Actor) -> None:
    assert make_actor().deterministic_step == "mean"


@pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC])
def test_latents_alone_are_those_of_the_whole_chain(
    make_actor: Actor, make_data: Data, exploration: ExplorationType
) -> None:
    actor, data = make_actor(return_chain=True), make_data(5)
    written = {}
    for choice in (True, "latents", False):
        alike = make_actor(return_chain=choice)
        alike.load_state_dict(actor.state_dict())
        torch.manual_seed(0)
        with set_exploration_type(exploration):
            written[choice] = alike(data.copy()).exclude(*data.keys())
        assert set(alike.out_keys) == set(written[choice].keys())
    assert set(written["latents"].keys()) == {"action", "latents"}
    assert set(written[False].keys()) == {"action"}
    for choice in ("latents", False):
        for key, value in written[choice].items():
            assert torch.equal(value, written[True][key])


def test_what_is_written_of_a_chain_is_checked(make_actor: Actor) -> None:
    with pytest.raises(ValueError, match="return_chain must be True, False or 'latents', got 'a'"):
        make_actor(return_chain="a")


@pytest.mark.parametrize("return_chain", [False, True])
def test_acting_without_noise_leaves_the_generator_alone(
    make_actor: Actor, make_data: Data, return_chain: bool
) -> None:
    actor = make_actor(return_chain=return_chain)
    data, before = make_data(5), torch.get_rng_state()
    with set_exploration_type(DETERMINISTIC):
        actor(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_paths_are_drawn_from_the_given_noise(make_actor: Actor, make_data: Data) -> None:
    actor, data = make_actor(return_chain=True, noise_key="noise"), make_data(5, noise=True)
    with set_exploration_type(RANDOM):
        expected = actor(data.clone())
    entry = actor.sample_path(data)
    argument = make_actor().sample_path(data.exclude("noise"), noise=data["noise"])
    first = argument.terminal_cost
    torch.testing.assert_close(entry.action, expected["action"])
    torch.testing.assert_close(first, entry.terminal_cost)
    other = data.clone()
    other["noise"] = torch.zeros_like(other["noise"])
    overridden = actor.sample_path(other, noise=data["noise"])
    for value, same in zip(overridden, entry, strict=True):
        torch.testing.assert_close(value, same)


def test_noise_is_one_of_the_inputs(make_actor: Actor) -> None:
    actor = make_actor(noise_key=("n", "z"))
    assert actor.in_keys == ["observation", ("n", "z")]
    assert actor.observation_keys == observation_keys(actor) == ["observation"]
    inputs = {"observation": torch.randn(5, 3).double(), "n_z": torch.randn(5, 5, 2).double()}
    with set_exploration_type(RANDOM):
        assert torch.equal(actor(**inputs), actor(*inputs.values()))


@pytest.mark.parametrize("shape", [(5, 2), (1, 5, 2), (4, 5, 2)])
def test_noise_of_another_batch_is_refused(
    make_actor: Actor, make_data: Data, shape: tuple[int, ...]
) -> None:
    actor = make_actor(score_network=PlainScore())
    observation = make_data(3)["observation"]
    with pytest.raises(ValueError, match=r"the batch shape of the observation, \(3,\), got"):
        actor.sample_latent(observation, torch.randn(shape).double())


def test_unknown_keywords_are_refused(make_actor: Actor) -> None:
    observation = torch.randn(5, 3).double()
    with pytest.raises(TypeError, match=r"DenoisingActor reads \['observation'\].*\['nois'\]"):
        make_actor()(observation=observation, nois=torch.randn(5, 5, 2))


@pytest.mark.parametrize(
    "name", ["action", "latents", "latent", "next_latent", "step", "log_prob", "kernel_std"]
)
def test_observations_with_the_name_of_another_entry_are_refused(
    make_actor: Actor, name: str
) -> None:
    with pytest.raises(ValueError, match=rf"in_keys has '{name}'.*Rename it .*ActorKeys"):
        make_actor(in_keys=["observation", name])
    keys = ActorKeys(**{name: "other"})
    assert make_actor(in_keys=["observation", name], keys=keys).in_keys == ["observation", name]


def test_names_below_one_another_collide(make_actor: Actor) -> None:
    keys = ActorKeys(action=("agent", "action"))
    with pytest.raises(ValueError, match=r"in_keys has 'agent', which collides with \('agent', "):
        make_actor(in_keys=["agent"], keys=keys)
    with pytest.raises(ValueError, match=r"in_keys has \('latents', 'x'\)"):
        make_actor(in_keys=[("latents", "x")])
    with pytest.raises(ValueError, match=r"in_keys has 'noise', which collides with 'noise'"):
        make_actor(in_keys=["noise"], noise_key="noise")
    with pytest.raises(ValueError, match=r"noise_key has 'latents'"):
        make_actor(noise_key="latents")
    with pytest.raises(ValueError, match=r"ActorKeys has latent='x' and next_latent='x'"):
        ActorKeys(latent="x", next_latent="x")
    nested = make_actor(in_keys=[("agent", "observation"), ("observation", "action")], keys=keys)
    assert nested.in_keys == [("agent", "observation"), ("observation", "action")]


def test_unknown_deterministic_step_is_refused(make_actor: Actor) -> None:
    with pytest.raises(ValueError, match=r"deterministic_step must be one of .*'published'.*'ode'"):
        make_actor(deterministic_step="ode")


def test_random_actions_vary_and_follow_the_seed(make_actor: Actor, make_data: Data) -> None:
    actor = make_actor()
    data = make_data(5)
    with set_exploration_type(RANDOM):
        torch.manual_seed(3)
        first, second = actor(data.clone())["action"], actor(data.clone())["action"]
        torch.manual_seed(3)
        again = actor(data.clone())["action"]
    assert (first != second).all()
    assert torch.equal(first, again)


def test_rows_of_a_batch_get_different_noise(make_actor: Actor) -> None:
    actor = make_actor()
    data = TensorDict({"observation": torch.ones(50, 3).double()}, [50])
    with set_exploration_type(RANDOM):
        action = actor(data)["action"]
    assert action.unique(dim=0).shape[0] == 50


def test_injected_noise_decides_the_chain(make_actor: Actor, make_data: Data) -> None:
    actor = make_actor(return_chain=True, noise_key="noise")
    data = make_data(5, noise=True)
    with set_exploration_type(RANDOM):
        out = actor(data)
    recovered = (out["latents"][:, 1:] - out["kernel_mean"]) / out["kernel_std"]
    torch.testing.assert_close(recovered, data["noise"][:, 1:])
    torch.testing.assert_close(out["latents"][:, 0], data["noise"][:, 0])


def test_gradients_reach_score_and_process(make_actor: Actor, make_data: Data) -> None:
    actor = make_actor(return_entropy_bound=True)
    with set_exploration_type(RANDOM):
        out = actor(make_data(8))
    (out["entropy_bound"].sum() + out["action"].sum()).backward()
    for name, parameter in actor.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_keyword_call_of_several_keys(make_actor: Actor) -> None:
    actor = make_actor(in_keys=["position", ("sensors", "speed")])
    position, speed = torch.randn(5, 2).double(), torch.randn(5, 1).double()
    with set_exploration_type(DETERMINISTIC):
        action = actor(position=position, sensors_speed=speed)
        expected = actor(TensorDict({"position": position, "sensors": {"speed": speed}}, [5]))
    assert torch.equal(action, expected["action"])


@pytest.mark.parametrize("batch", BATCHES)
def test_keyword_call_returns_the_action(make_actor: Actor, batch: tuple[int, ...]) -> None:
    actor, observation = make_actor(), torch.randn(*batch, 3).double()
    with set_exploration_type(DETERMINISTIC):
        expected = actor(TensorDict({"observation": observation}, batch))["action"]
        assert torch.equal(actor(observation=observation), expected)


def test_keyword_call_returns_a_tuple_in_the_order_of_out_keys(make_actor: Actor) -> None:
    actor = make_actor(return_chain=True)
    observation = torch.randn(5, 3).double()
    with set_exploration_type(DETERMINISTIC):
        values = actor(observation=observation)
        expected = actor(TensorDict({"observation": observation}, [5]))
    for value, key in zip(values, actor.out_keys, strict=True):
        assert torch.equal(value, expected[key])


def test_score_network_without_condition_gets_integer_steps(
    make_actor: Actor, make_data: Data
) -> None:
    network = PlainScore()
    actor = make_actor(score_network=network)
    actor(make_data(3, 5))
    assert [step.shape for step in network.steps] == [(3, 5)] * 4
    assert [step.unique().tolist() for step in network.steps] == [[0], [1], [2], [3]]
    assert all(step.dtype == torch.int64 for step in network.steps)


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("custom", [False, True])
def test_denoising_steps_can_change_for_acting(
    make_actor: Actor, make_data: Data, steps: int, custom: bool
) -> None:
    actor = make_actor(return_chain=True, score_network=PlainScore() if custom else None)
    horizon = actor.process.step_sizes().sum(0)

    actor.denoising_steps = steps
    with set_exploration_type(RANDOM):
        out = actor(make_data(5))

    assert actor.denoising_steps == steps
    assert out["latents"].shape == (5, steps + 1, 2)
    torch.testing.assert_close(actor.process.step_sizes().sum(0), horizon)
    rows = chain_rows(out)
    torch.testing.assert_close(actor.denoising_kernel(rows).mean, out["kernel_mean"])
    noising = actor.noising_kernel(rows)
    log_p = gaussian_log_prob(rows["latent"], noising)
    torch.testing.assert_close(out["log_prob"] - log_p, out["log_ratio"])


def test_changing_the_steps_and_back_changes_nothing(make_actor: Actor, make_data: Data) -> None:
    actor, data = make_actor(), make_data(5)
    with set_exploration_type(DETERMINISTIC):
        before = actor(data.clone())["action"]
        actor.denoising_steps = 9
        assert (actor(data.clone())["action"] - before).abs().max() > 1e-4
        actor.denoising_steps = 4
        torch.testing.assert_close(actor(data.clone())["action"], before, rtol=0, atol=1e-6)


def test_state_dict_round_trip_restores_everything(make_actor: Actor, make_data: Data) -> None:
    source, target = make_actor(noise_key="noise"), make_actor(noise_key="noise")
    with torch.no_grad():
        source.process.raw_friction.add_(1)
    data, buffer = make_data(5, noise=True), io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    with set_exploration_type(RANDOM):
        expected = source(data.clone())["action"]
        assert (target(data.clone())["action"] != expected).all()
        target.load_state_dict(torch.load(buffer))
        assert torch.equal(target(data.clone())["action"], expected)


def test_a_loaded_actor_acts_with_the_steps_and_frequencies_of_the_saved_one(
    make_actor: Actor, make_data: Data
) -> None:
    source, target = make_actor(return_chain=True), make_actor(return_chain=True)
    source.denoising_steps = 7
    with torch.no_grad():
        source.score_network.embedding.coefficients.mul_(0.1)
    target.load_state_dict(source.state_dict())
    assert target.denoising_steps == 7
    data = make_data(5)
    for exploration in (RANDOM, DETERMINISTIC):
        with set_exploration_type(exploration):
            torch.manual_seed(0)
            expected = source(data.clone())
            torch.manual_seed(0)
            out = target(data.clone())
        for key in source.out_keys:
            assert torch.equal(out[key], expected[key]), key


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda actor: pickle.loads(pickle.dumps(actor))]
)
def test_copies_act_alike_and_are_independent(
    make_actor: Actor, make_data: Data, duplicate: Callable
) -> None:
    actor, data = make_actor(return_chain=True, keys=NESTED), make_data(5)
    twin = duplicate(actor)
    assert twin.in_keys == actor.in_keys
    assert twin.out_keys == actor.out_keys
    with set_exploration_type(DETERMINISTIC):
        expected = actor(data.clone())[NESTED.latents]
        assert torch.equal(twin(data.clone())[NESTED.latents], expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert torch.equal(actor(data.clone())[NESTED.latents], expected)


def test_float32_actor(make_actor: Actor, make_data: Data) -> None:
    out = make_actor(return_chain=True).float()(make_data(5).float())
    assert {out[key].dtype for key in ("action", "latents", "log_prob")} == {torch.float32}


def test_actor_satisfies_the_protocol(make_actor: Actor) -> None:
    actor = make_actor()
    assert isinstance(actor, ChainActor)
    assert isinstance(actor.denoising_kernel(one_row(actor)), Gaussian)
    prior = actor.sample_prior((3, 5))
    assert prior.shape == (3, 5, 2)
    assert not isinstance(nn.Linear(2, 2), ChainActor)


def one_row(actor: DenoisingActor) -> TensorDict:
    return TensorDict(
        {
            "observation": torch.randn(3).double(),
            "latent": actor.sample_prior(()),
            "step": torch.tensor([2]),
        }
    )


def test_action_dimensions_must_agree() -> None:
    squash = ActionSquash(-torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="process has 2 action dimensions and squash 3"):
        DenoisingActor(DenoisingProcess(2, 4), PlainScore(), squash)
