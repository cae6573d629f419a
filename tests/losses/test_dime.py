"""Behaviour of the DIME loss: modes, sampling, options, ranges, and users' own actors."""

import copy
import math
import warnings

import pytest
import torch
from loss_builders import (
    ACTION,
    OBSERVATION,
    gradients,
    make_off_policy_networks,
    make_rollout,
)
from rowwise import rowwise_draws
from tensordict import TensorDict, TensorDictBase, assert_close
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.objectives import HardUpdate, SoftUpdate

from diffpolicy.actors import (
    ActionSquash,
    ActorKeys,
    DenoisingActor,
    PathActor,
    PathSample,
    chain_rows,
)
from diffpolicy.networks import CategoricalSupport, QEnsemble, RunningNorm, ScoreNetwork
from diffpolicy.sde import DenoisingProcess
from objectives import DIMELoss, LearnedTemperature


def build(
    support: tuple[float, float, int] | None = (-4.0, 4.0, 21),
    normalization: str | None = "batch",
    temperature: float | LearnedTemperature = 0.3,
    **options,
) -> DIMELoss:
    actor, critic = make_off_policy_networks(
        support=None if support is None else CategoricalSupport(*support),
        normalization=normalization,
    )
    return DIMELoss(actor, critic, temperature=temperature, **options)


def transitions(loss: DIMELoss, rows: int = 16) -> TensorDictBase:
    batch = make_rollout(loss.actor_network, (rows,))
    batch.names = None
    return batch


def sac_options() -> dict:
    return {"support": None, "normalization": "layer", "delay_qvalue": True}


# -- the joint forward ---------------------------------------------------------------------


def test_next_states_change_current_values_in_training_mode_only() -> None:
    loss = build()
    batch = transitions(loss)
    changed = batch.clone()
    changed["next", "observation"] += 1
    for training in (True, False):
        loss.train(training)
        draws = rowwise_draws(loss, batch)
        values = [loss.qvalue_loss(b, draws=draws)[1]["q_value"] for b in (batch, changed)]
        assert torch.allclose(*values) != training


def test_statistics_move_once_per_critic_loss_and_never_in_the_actor_loss() -> None:
    loss = build()
    batch = transitions(loss)
    steps = loss.qvalue_network_params["module", "net", "0", "steps"]
    for count in (1, 2):
        loss.qvalue_loss(batch)
        assert int(steps) == count
    before = copy.deepcopy(loss.state_dict())
    value, _ = loss.actor_loss(batch)
    assert all(module.training for module in loss.qvalue_network.modules())
    for key, entry in loss.state_dict().items():
        assert torch.equal(entry, before[key]), key
    loss.qvalue_loss(batch)
    value.backward()  # the graph does not hold the statistics that just moved
    loss.eval()
    loss.qvalue_loss(batch)
    assert int(steps) == 3


def test_running_statistics_are_those_of_both_halves() -> None:
    loss = build()
    batch = transitions(loss)
    loss.qvalue_loss(batch)
    mean = loss.qvalue_network_params["module", "net", "0", "running_mean"]
    encoder = loss.qvalue_network.module.normalizer
    both = encoder(torch.cat((batch["observation"], batch["next", "observation"])))
    torch.testing.assert_close(mean[0, :3], 0.01 * both.mean(0).detach())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt:FutureWarning")
def test_compiled_training_equals_eager_training() -> None:
    torch._dynamo.reset()
    loss = build()
    other = copy.deepcopy(loss)
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    optimizers = [torch.optim.SGD(x.parameters(), 0.05) for x in (loss, other)]
    batch = transitions(loss)
    for _ in range(3):
        draws = rowwise_draws(loss, batch)
        outs = [loss(batch.clone(), draws=draws), compiled(batch.clone(), draws=draws)]
        for out, optimizer in zip(outs, optimizers, strict=True):
            optimizer.zero_grad()
            (out["loss_qvalue"] + out["loss_actor"]).backward()
            optimizer.step()
        assert_close(*outs, rtol=1e-4, atol=1e-5)
    for key, value in loss.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt:FutureWarning")
@pytest.mark.parametrize("options", [{}, sac_options()], ids=["published", "scalar"])
def test_compiled_critic_loss_is_one_graph_and_equals_eager(options: dict) -> None:
    """For updates without the policy: with a derived range, and still writing ``td_error``."""
    torch._dynamo.reset()
    loss = build(**options)
    batch = transitions(loss)
    if loss.delay_qvalue:
        SoftUpdate(loss, tau=0.1)
    else:
        loss.derive_value_range(batch)
    other = copy.deepcopy(loss)
    compiled = torch.compile(other.qvalue_loss, fullgraph=True, backend="eager")
    for _ in range(2):
        rows = [batch.clone(), batch.clone()]
        draws = rowwise_draws(loss, batch)
        value, diagnostics = loss.qvalue_loss(rows[0], draws=draws)
        again, repeated = compiled(rows[1], draws=draws)
        torch.testing.assert_close(again, value)
        assert_close(TensorDict(repeated), TensorDict(diagnostics))
        torch.testing.assert_close(rows[1]["td_error"], rows[0]["td_error"])
        expected, actual = gradients(loss, value), gradients(other, again)
        assert set(actual) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5)


# -- sampling ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(ExplorationType))
def test_two_calls_sample_different_chains(kind: ExplorationType) -> None:
    loss = build()
    batch = transitions(loss)
    for term in (loss.qvalue_loss, loss.actor_loss):
        with set_exploration_type(kind):
            torch.manual_seed(0)
            first, again = term(batch)[0], term(batch)[0]
            torch.manual_seed(0)
            repeated = term(batch)[0]
        assert not torch.allclose(first, again)
        torch.testing.assert_close(first, repeated)


class GaussianActor(TensorDictModuleBase):
    """An actor of a user: a squashed Gaussian, whose costs are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3, 2)
        self.keys = ActorKeys()
        self.in_keys, self.out_keys = ["observation"], ["action"]

    def sample_path(
        self,
        tensordict: TensorDictBase,
        *,
        noise: Tensor | None = None,
        checkpoint: bool = False,
    ) -> PathSample:
        mean = self.mean(tensordict["observation"])
        random = exploration_type() == ExplorationType.RANDOM
        if noise is None:
            noise = torch.randn_like(mean) if random else torch.zeros_like(mean)
        action = (mean + 0.5 * noise).tanh()
        log_prob = (-0.5 * noise**2 - math.log(0.5 * math.sqrt(2 * math.pi))).sum(-1, keepdim=True)
        log_det = (1 - action**2).log().sum(-1, keepdim=True)
        return PathSample(action, log_prob - log_det, torch.zeros_like(log_prob))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", self.sample_path(tensordict).action)


def test_actor_of_a_user() -> None:
    actor = GaussianActor()
    assert isinstance(actor, PathActor)
    _, critic = make_off_policy_networks()
    loss = DIMELoss(actor, critic, temperature=0.1)
    batch = transitions(loss)
    out = loss(batch)
    assert not torch.allclose(out["loss_actor"], loss(batch)["loss_actor"])
    names = {name for name, _ in loss.named_parameters() if name.startswith("actor_")}
    assert names
    assert set(gradients(loss, out["loss_actor"])) == names


def test_actor_without_the_members_raises() -> None:
    with pytest.raises(TypeError, match=r"members of diffpolicy.actors.PathActor .* got Linear"):
        DIMELoss(nn.Linear(1, 1), nn.Linear(1, 1), temperature=0.1)


def test_path_of_the_actor_equals_its_chain() -> None:
    actor, _ = make_off_policy_networks()
    batch = TensorDict({"observation": torch.randn(4, 5, 3)}, [4, 5])
    noise = torch.randn(4, 5, 4, 2)
    path = actor.sample_path(batch, noise=noise)
    assert set(batch.keys()) == {"observation"}
    actor.noise_key = "noise"
    batch["noise"] = noise
    again = actor.sample_path(batch)
    torch.testing.assert_close(again, path)
    actor.return_chain = True
    actor.return_entropy_bound = True
    actor(batch)
    torch.testing.assert_close(batch["action"], path.action)
    costs = path.running_cost + path.terminal_cost
    torch.testing.assert_close(batch["entropy_bound"], -costs, rtol=1e-4, atol=1e-4)
    assert chain_rows(batch, step_keys=())["log_ratio"].shape == (4, 5, 3, 1)


# -- targets -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, sac_options()], ids=["published", "scalar"])
def test_terminal_removes_value_and_entropy_and_truncation_neither(options: dict) -> None:
    loss = build(**options).eval()
    if loss.delay_qvalue:
        SoftUpdate(loss, tau=0.1)
    batch = transitions(loss)

    def target(terminated: bool, done: bool, temperature: float) -> float:
        loss.temperature.value.fill_(temperature)
        batch["next", "terminated"] = torch.full((16, 1), terminated)
        batch["next", "done"] = torch.full((16, 1), done)
        draws = rowwise_draws(loss, batch)
        return loss.qvalue_loss(batch, draws=draws)[1]["target_value"].item()

    reward = batch["next", "reward"].mean().item()
    assert target(True, True, 0.3) == pytest.approx(reward, abs=1e-5)
    assert target(True, True, 0.6) == pytest.approx(reward, abs=1e-5)
    assert target(False, True, 0.3) == target(False, False, 0.3)
    assert abs(target(False, True, 0.3) - reward) > 1e-3
    assert abs(target(False, True, 0.3) - target(False, True, 0.6)) > 1e-3


def test_several_next_actions_are_averaged() -> None:
    """With equal noise for every copy nothing changes; with fresh noise the target varies less."""
    batch = transitions(build())
    one, four = (build(normalization=None, num_next_actions=m) for m in (1, 4))
    four.load_state_dict(one.state_dict())
    first, same = (
        loss.qvalue_loss(batch, draws=rowwise_draws(loss, batch)) for loss in (one, four)
    )
    torch.testing.assert_close(first[0], same[0])

    def spread(count: int) -> float:
        options = {"support": None, "normalization": None}
        torch.manual_seed(0)
        loss = build(num_next_actions=count, **options)
        return torch.stack(
            [loss.qvalue_loss(batch[:1])[1]["target_value"] for _ in range(200)]
        ).std()

    batch["next", "terminated"].fill_(False)
    assert spread(16) == pytest.approx(spread(1) / 4, rel=0.25)


@pytest.mark.parametrize("updater", [SoftUpdate, HardUpdate])
def test_targets_follow_the_updater(updater: type) -> None:
    loss = build(**sac_options())
    hard = {"value_network_update_interval": 1}
    update = updater(loss, **({"tau": 0.5} if updater is SoftUpdate else hard))
    batch = transitions(loss)
    draws = rowwise_draws(loss, batch)

    def target() -> Tensor:
        return loss.qvalue_loss(batch, draws=draws)[1]["target_value"]

    before = target()
    with torch.no_grad():
        for parameter in loss.qvalue_network.parameters():
            parameter.add_(0.3)
    torch.testing.assert_close(target(), before)
    for _ in range(2):  # TorchRL's HardUpdate copies every interval + 1 steps
        update.step()
    assert not torch.allclose(target(), before)


def test_n_step_returns_discount_with_their_power() -> None:
    loss = build(support=None, normalization=None)
    loss.make_value_estimator(gamma=0.5)
    batch = transitions(loss)
    batch["next", "terminated"].fill_(False)
    batch["next", "reward"].zero_()
    draws = rowwise_draws(loss, batch)
    one = loss.qvalue_loss(batch, draws=draws)[1]["target_value"]
    batch["steps_to_next_obs"] = torch.full((16, 1), 3)
    three = loss.qvalue_loss(batch, draws=draws)[1]["target_value"]
    torch.testing.assert_close(three, one / 4)


def test_td_error_is_written_for_prioritised_replay() -> None:
    loss = build()
    loss.set_keys(priority=("replay", "priority"))
    batch = transitions(loss)
    out = loss(batch)
    assert batch["replay", "priority"].shape == (16,)
    assert bool((batch["replay", "priority"] >= 0).all())
    torch.testing.assert_close(batch["replay", "priority"].mean(), out["td_error"])


# -- value range ---------------------------------------------------------------------------


def test_given_range_moves_the_atoms() -> None:
    loss = build(value_range=(-7.0, 9.0))
    assert float(loss.value_support.atoms[0]) == -7
    loss(transitions(loss))
    assert float(loss.value_support.atoms[-1]) == 9


def test_auto_range_is_derived_from_the_first_batch_with_a_warning() -> None:
    loss = build(value_range="auto")
    loss.make_value_estimator(gamma=0.9)
    batch = transitions(loss)
    limit = 2 * batch["next", "reward"].abs().max().item() / (1 - 0.9)
    with pytest.warns(UserWarning, match=r"atoms now span \+-.* 16 rewards"):
        loss(batch)
    assert float(loss.value_support.atoms[-1]) == pytest.approx(limit, rel=1e-4)
    batch["next", "reward"] *= 10
    loss(batch)
    assert float(loss.value_support.atoms[-1]) == pytest.approx(limit, rel=1e-4)
    other = build(value_range="auto")
    other.load_state_dict(loss.state_dict())
    other(batch)  # the loaded range stays, without a warning
    assert float(other.value_support.atoms[-1]) == pytest.approx(limit, rel=1e-4)


def test_range_from_warm_up_data() -> None:
    loss = build(value_range="auto")
    loss.make_value_estimator(gamma=0.99)
    batch = transitions(loss)
    batch["next", "reward"].clamp_(-1, 1)[0] = 1
    assert loss.derive_value_range(batch) == pytest.approx(200, rel=1e-4)
    loss(batch)
    assert float(loss.value_support.atoms[0]) == pytest.approx(-200, rel=1e-4)


def test_clipped_targets_are_logged_and_warned_about_once() -> None:
    loss = build(value_range=(-50.0, 50.0), normalization=None)
    batch = transitions(loss)
    assert loss(batch)["value_clip_fraction"].item() < 0.2
    batch["next", "reward"] += 200
    assert loss(batch)["value_clip_fraction"].item() == pytest.approx(1)

    def train() -> None:
        for _ in range(260):
            loss.qvalue_loss(batch)

    with pytest.warns(UserWarning, match=r"100% of the critics' target.*\[-50, 50\]"):
        train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic_reduction": "min"}, "critic_reduction='min' needs scalar critics"),
        ({"critic_reduction": "median"}, "critic_reduction must be one of 'mean', 'min'"),
        ({"loss_function": "l3"}, "loss_function must be one of"),
        ({"num_next_actions": 0}, "num_next_actions must be at least 1, got 0"),
        ({"delay_qvalue": True}, "does not go with the running statistics of BatchRenorm"),
        ({"value_range": "wide"}, "value_range must be .* got 'wide'"),
        ({"support": None, "value_range": "auto"}, "value_range='auto' needs a categorical"),
        ({"value_range": (1.0, 0.0)}, "minimum must be below maximum"),
        ({"temperature": -1.0}, "temperature must be"),
    ],
)
def test_bad_options_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_target_networks_do_not_go_with_observation_statistics() -> None:
    normalizer = RunningNorm(OBSERVATION)
    network = QEnsemble(OBSERVATION, ACTION, hidden_sizes=(8,), normalizer=normalizer)
    critic = TensorDictModule(network, ["observation", "action"], ["state_action_value"])
    with pytest.raises(ValueError, match="running statistics of RunningNorm"):
        DIMELoss(build().actor_network, critic, temperature=0.1, delay_qvalue=True)


def test_missing_reward_names_the_key() -> None:
    loss = build()
    with pytest.raises(KeyError, match="key 'reward' is missing"):
        loss(transitions(loss).exclude(("next", "reward")))
    scalar = build(support=None)
    with pytest.raises(ValueError, match="needs a critic with a CategoricalSupport"):
        scalar.derive_value_range(transitions(scalar))


# -- updates -------------------------------------------------------------------------------


def test_cadence_moves_the_actor_at_every_third_update_only() -> None:
    loss = build(temperature=LearnedTemperature(1.0, -8.0))
    groups = {
        name: [p for key, p in loss.named_parameters() if key.startswith(name)]
        for name in ("actor_network_params", "qvalue_network_params", "temperature")
    }
    optimizers = {name: torch.optim.Adam(group, 1e-3) for name, group in groups.items()}
    batch = transitions(loss)
    for update in range(1, 7):
        before = {name: [p.clone() for p in group] for name, group in groups.items()}
        total = loss.qvalue_loss(batch)[0]
        if update % 3 == 0:
            actor, entropies = loss.actor_loss(batch)
            total = total + actor + loss.alpha_loss(batch, entropies["entropy"])
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        total.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        for name, group in groups.items():
            moved = any(not torch.equal(*pair) for pair in zip(group, before[name], strict=True))
            assert moved == (name == "qvalue_network_params" or update % 3 == 0), (name, update)


def test_temperature_rises_while_the_entropy_is_below_its_target() -> None:
    for allowed in (-100.0, 100.0):
        loss = build(temperature=LearnedTemperature(1.0, target_entropy=-allowed))
        out = loss(transitions(loss))
        slope = gradients(loss, out["loss_alpha"])["temperature.log_alpha"].item()
        assert (slope < 0) == (out["entropy"].item() < -allowed)


def test_initial_costs_are_the_published_ones() -> None:
    """run = 2.856 d and term = -2.335 d on average, with N = 16 and prior std 2.5."""
    dim = 6
    process = DenoisingProcess(
        dim, 16, prior_std=2.5, schedule="cosine", step_size=0.1, noising_step="same"
    )
    squash = ActionSquash(-torch.ones(dim), torch.ones(dim))
    actor = DenoisingActor(process, ScoreNetwork(dim, 3, 16, hidden_sizes=(8,)), squash)
    with torch.no_grad():
        path = actor.sample_path(TensorDict({"observation": torch.randn(20_000, 3)}, [20_000]))
    for cost, expected in ((path.running_cost, 2.856), (path.terminal_cost, -2.33523)):
        error = 4 * cost.std().item() / 20_000**0.5 / dim
        assert cost.mean().item() / dim == pytest.approx(expected, abs=error)


def test_path_weights_average_to_the_normaliser_of_squashed_actions() -> None:
    """E[exp(Q/T - run - term)] = Z for any score and step sizes, by quadrature over the noise."""
    torch.set_default_dtype(torch.float64)
    try:
        process = DenoisingProcess(1, 1, prior_std=1.2, step_size=0.5, noising_step="same")
        score = ScoreNetwork(1, 1, 1, hidden_sizes=(4,), init_std=0.5)
        squash = ActionSquash(-torch.ones(1), torch.ones(1))
        actor = DenoisingActor(process, score, squash, noise_key="noise")
        nodes = torch.linspace(-8, 8, 1201)
        noise = torch.cartesian_prod(nodes, nodes)
        weight = torch.exp(-0.5 * noise.square().sum(-1, keepdim=True)) / (2 * math.pi)
        weight = weight * (nodes[1] - nodes[0]) ** 2
        batch = TensorDict(
            {"noise": noise.unsqueeze(-1), "observation": torch.ones(len(noise), 1)}, [len(noise)]
        )
        with torch.no_grad():
            path = actor.sample_path(batch)
        log_weight = torch.cos(3 * path.action) / 0.4 - path.running_cost - path.terminal_cost
        actions = torch.linspace(-1, 1, 20_001)
        expected = torch.trapezoid(torch.exp(torch.cos(3 * actions) / 0.4), actions)
        mean = (weight * log_weight.exp()).sum()
        assert mean.item() == pytest.approx(expected.item(), rel=1e-4)
        elbo = (weight * log_weight).sum()
        assert elbo.item() < expected.log().item() - 0.01
    finally:
        torch.set_default_dtype(torch.float32)


def test_costs_without_a_score_are_known_on_every_path() -> None:
    """run + term = log N(x_N) - log-det - sum_n eta_n (|x_n|^2 - |x_{n+1}|^2) / (4 nu^4)."""
    process = DenoisingProcess(2, 5, prior_std=1.8, schedule="cosine", noising_step="same").double()
    score = ScoreNetwork(2, 1, 5, hidden_sizes=(4,), init_std=0.0).double()
    squash = ActionSquash(-torch.ones(2), torch.ones(2)).double()
    actor = DenoisingActor(process, score, squash, noise_key="noise")
    batch = TensorDict(
        {"noise": torch.randn(50, 6, 2).double(), "observation": torch.ones(50, 1).double()}, [50]
    )
    path = actor.sample_path(batch)
    chain = actor.sample_chain(batch["observation"], batch["noise"])
    last = chain.latents[:, -1]
    square = chain.latents.square().sum(-1, keepdim=True)
    drop = (process.step_sizes()[:, :1] * (square[:, :-1] - square[:, 1:])).sum(-2) / (4 * 1.8**4)
    prior = torch.distributions.Normal(0.0, process.prior_std).log_prob(last).sum(-1, keepdim=True)
    log_det = (1 - last.tanh().square()).log().sum(-1, keepdim=True)
    torch.testing.assert_close(
        path.running_cost + path.terminal_cost, prior - log_det - drop, rtol=1e-8, atol=1e-8
    )
