"""Behaviour cloning against its formulas, and on demonstrations with two modes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_builders import ACTION, NESTED_KEYS, OBSERVATION, STEPS, gradients
from tensordict import TensorDict, TensorDictBase, assert_close
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import ActionClip, ActionSquash, ActorKeys, DenoisingActor
from diffpolicy.networks import ScoreNetwork, StepEmbedding
from diffpolicy.sde import DenoisingProcess, RectifiedFlowProcess, VariancePreservingProcess
from diffpolicy.sde.base import ProcessModule
from objectives import BehaviorCloningLoss

MakeProcess = Callable[[int, int], ProcessModule]


def own(action_dim: int, steps: int) -> DenoisingProcess:
    return DenoisingProcess(action_dim, steps, prior_std=0.4, step_size=0.08)


def dime(action_dim: int, steps: int) -> DenoisingProcess:
    """A process that does not forget where it ends."""
    return DenoisingProcess(
        action_dim, steps, prior_std=2.5, schedule="cosine", noising_step="same"
    )


PROCESSES: dict[str, MakeProcess] = {
    "own": own,
    "dime": dime,
    "diffusion": VariancePreservingProcess,
    "flow": RectifiedFlowProcess,
}


def make_actor(
    make_process: MakeProcess,
    *,
    action_dim: int = ACTION,
    observation_dim: int = OBSERVATION,
    steps: int = STEPS,
    hidden: int = 8,
    init_std: float = 0.3,
    **options: Any,
) -> DenoisingActor:
    process = make_process(action_dim, steps)
    squash = ActionSquash if isinstance(process, DenoisingProcess) else ActionClip
    score = ScoreNetwork(
        action_dim,
        observation_dim,
        steps,
        hidden_sizes=(hidden, hidden),
        embedding=StepEmbedding(steps, 8, 8, 8),
        init_std=init_std,
    )
    bound = torch.ones(action_dim)
    return DenoisingActor(process, score, squash(-2 * bound, bound), **options)


def demonstrations(rows: int = 6, **shapes: Any) -> TensorDictBase:
    generator = torch.Generator().manual_seed(3)
    observation = torch.randn(rows, OBSERVATION, generator=generator)
    action = 2.6 * torch.rand(rows, ACTION, generator=generator) - 1.8
    return TensorDict({"observation": observation, "action": action}, [rows])


def expected_loss(actor: DenoisingActor, row: TensorDictBase, step: int, noise: Tensor) -> Tensor:
    """``|scale (net - y)|^2 / A`` of one action at one step, with the formula of its process."""
    process, unit = actor.process, (row["action"] + 0.5) / 1.5
    if isinstance(process, VariancePreservingProcess):
        level = process.levels[step]
        latent, wanted, scale = level.sqrt() * unit + (1 - level).sqrt() * noise, noise, 1.0
    elif isinstance(process, RectifiedFlowProcess):
        time = step / process.denoising_steps
        latent, wanted, scale = time * unit + (1 - time) * noise, unit - noise, 1.0
    else:
        signal, std = process.bridge_level(torch.tensor(step))
        clean = torch.atanh(unit)
        latent = signal * clean + std * noise
        wanted = process.output_for_clean(latent, clean, torch.tensor(step))
        scale = process.noise_level(torch.tensor(step)).std / 2
    output = actor.score_network(latent[None], torch.tensor([step]), row["observation"][None])
    return (scale * (output[0] - wanted)).square().mean()


@pytest.mark.parametrize("name", PROCESSES)
def test_the_loss_is_its_formula(name: str) -> None:
    loss = BehaviorCloningLoss(make_actor(PROCESSES[name]), sampled_steps=2)
    batch = demonstrations()
    draws = loss.draw(batch)
    per_row = torch.stack(
        [
            torch.stack(
                [
                    expected_loss(
                        loss.actor_network,
                        batch[row],
                        int(draws["step"][row, k]),
                        draws["noise"][row, k],
                    )
                    for k in range(2)
                ]
            ).mean()
            for row in range(len(batch))
        ]
    )
    out = loss(batch, draws=draws)
    torch.testing.assert_close(out["loss_actor"], per_row.mean())
    torch.testing.assert_close(out["noise_error"], per_row.sqrt().mean().detach())
    assert_close(loss(batch, draws=draws), out, rtol=0, atol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_gradients_reach_the_network_alone(name: str) -> None:
    loss = BehaviorCloningLoss(make_actor(PROCESSES[name]))
    out = loss(demonstrations())
    assert list(out.keys()) == loss.out_keys == ["loss_actor", "noise_error"]
    assert not out["noise_error"].requires_grad
    reached = set(gradients(loss, out["loss_actor"]))
    wanted = {n for n, _ in loss.named_parameters() if ".process." not in n}
    assert reached == wanted


def test_reductions_masks_and_weights() -> None:
    actor = make_actor(own)
    batch = demonstrations()
    losses = {r: BehaviorCloningLoss(actor, reduction=r) for r in ("none", "mean", "sum")}
    draws = losses["none"].draw(batch)
    each = losses["none"](batch, draws=draws)
    assert each.batch_size == batch.batch_size
    for name, total in (("mean", each["loss_actor"].mean()), ("sum", each["loss_actor"].sum())):
        torch.testing.assert_close(losses[name](batch, draws=draws)["loss_actor"], total)
    mask = torch.arange(6) % 3 != 0
    padded = batch.clone().set(("collector", "mask"), mask)
    padded["action"][~mask] = 99.0  # padding may hold anything
    out = losses["mean"](padded, draws=draws)
    assert_close(out, losses["mean"](batch[mask], draws=draws[mask]))
    weight = torch.rand(6) + 0.5
    weighted = losses["mean"](batch.clone().set("priority_weight", weight), draws=draws)
    expected = (each["loss_actor"] * weight).sum() / weight.sum()
    torch.testing.assert_close(weighted["loss_actor"], expected)


def test_nested_keys_keyword_calls_and_further_dimensions() -> None:
    observation = ("agent", "observation")
    actor = make_actor(own, in_keys=[observation], keys=NESTED_KEYS)
    loss = BehaviorCloningLoss(actor)
    assert loss.in_keys == [observation, ("agent", "action")]
    plain = demonstrations()
    batch = TensorDict({"agent": plain}, plain.batch_size)
    draws = loss.draw(batch)
    out = loss(batch, draws=draws)
    folded = loss(batch.reshape(2, 3), draws=draws.reshape(2, 3))
    assert_close(folded, out)
    loss = BehaviorCloningLoss(make_actor(own))
    torch.manual_seed(1)
    value, _ = loss(**{k: plain[k] for k in loss.in_keys})
    torch.manual_seed(1)
    torch.testing.assert_close(value, loss(plain)["loss_actor"])
    loss.set_keys(priority_weight="importance")
    with pytest.raises(ValueError, match="set_keys"):
        loss.set_keys(action="other")


def test_actions_at_the_bounds_have_a_finite_loss() -> None:
    actor = make_actor(own)
    batch = demonstrations()
    batch["action"][:] = torch.tensor([-2.0, 1.0])
    limited = BehaviorCloningLoss(actor, latent_limit=2.0)
    draws = limited.draw(batch)
    inside = batch.clone()
    inside["action"] = actor.squash(torch.tensor([-2.0, 2.0]).expand(6, 2))
    assert_close(limited(batch, draws=draws), limited(inside, draws=draws))
    assert BehaviorCloningLoss(actor)(batch)["loss_actor"] < 1e3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt:FutureWarning")
def test_the_compiled_loss_is_the_same() -> None:
    torch._dynamo.reset()
    loss, batch = BehaviorCloningLoss(make_actor(own)), demonstrations()
    draws = loss.draw(batch)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")(batch, draws=draws)
    assert_close(compiled, loss(batch, draws=draws))


def test_what_does_not_fit_is_refused() -> None:
    actor = make_actor(own)
    gaussian = TensorDictModule(nn.Linear(3, 2), ["observation"], ["action"])
    with pytest.raises(TypeError, match="RegressionActor"):
        BehaviorCloningLoss(gaussian)
    for options, words in (
        ({"sampled_steps": 0}, "sampled_steps must be between 1 and 3"),
        ({"latent_limit": 0.0}, "latent_limit must be above 0"),
        ({"reduction": "average"}, "reduction must be"),
    ):
        with pytest.raises(ValueError, match=words):
            BehaviorCloningLoss(actor, **options)
    loss, batch = BehaviorCloningLoss(actor), demonstrations()
    with pytest.raises(NotImplementedError, match="estimates no values"):
        loss.make_value_estimator()
    with pytest.raises(KeyError, match="action"):
        loss(batch.exclude("action"))
    with pytest.raises(KeyError, match="draws has"):
        loss(batch, draws=TensorDict({"prior": torch.zeros(6)}, [6]))
    batch["action"][0] = 1.5
    with pytest.raises(ValueError, match="action must be within"):
        loss(batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_both_modes_are_cloned(name: str) -> None:
    """A quarter of the demonstrations is at -1.4, the others are at 0.4."""
    torch.manual_seed(0)
    actor = make_actor(
        PROCESSES[name],
        action_dim=1,
        observation_dim=1,
        steps=6,
        hidden=64,
        init_std=0.05,
        keys=ActorKeys(),
    )
    loss = BehaviorCloningLoss(actor, sampled_steps=6)
    optimizer = torch.optim.Adam(actor.score_network.parameters(), 1e-2)
    updates = 450
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, updates)
    for _ in range(updates):
        left = torch.rand(96, 1) < 0.25
        batch = {"observation": torch.ones(96, 1), "action": torch.where(left, -1.4, 0.4)}
        out = loss(TensorDict(batch, [96]))
        optimizer.zero_grad()
        out["loss_actor"].backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        action = actor(TensorDict({"observation": torch.ones(4000, 1)}, [4000]))["action"]
    left = action < -0.5
    assert abs(float(left.float().mean()) - 0.25) < 0.1
    assert abs(float(action[left].median()) + 1.4) < 0.5
    assert abs(float(action[~left].median()) - 0.4) < 0.3
