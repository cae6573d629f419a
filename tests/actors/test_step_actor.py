"""The one-step policy of the denoising MDP."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import ActorKeys, DenoisingActor, DenoisingStepActor
from diffpolicy.sde import Gaussian, gaussian_log_prob

RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
Actor = Callable[..., DenoisingActor]


def chain_by_steps(
    actor: DenoisingActor, start: torch.Tensor, observation: torch.Tensor
) -> TensorDict:
    """Apply the step actor N times from x_0; stacks what it wrote along dimension 1."""
    step_actor, latent, rows = DenoisingStepActor(actor), start, []
    for n in range(actor.denoising_steps):
        row = TensorDict(
            {
                "observation": observation,
                "latent": latent,
                "step": torch.full((start.shape[0], 1), n),
            },
            [start.shape[0]],
        )
        rows.append(step_actor(row))
        latent = rows[-1]["next_latent"]
    return torch.stack(rows, 1)


def test_steps_reproduce_the_chain_of_the_actor(make_actor: Actor) -> None:
    actor = make_actor(return_chain=True, deterministic_step="mean", noise_key="noise")
    start, observation = torch.randn(6, 2).double(), torch.randn(6, 3).double()
    noise = torch.zeros(6, 5, 2).double()
    noise[:, 0] = start
    with set_exploration_type(DETERMINISTIC):
        chain = actor(TensorDict({"observation": observation, "noise": noise}, [6]))
        rows = chain_by_steps(actor, start, observation)
    torch.testing.assert_close(rows["next_latent"], chain["latents"][:, 1:])
    torch.testing.assert_close(rows["log_prob"], chain["log_prob"])
    torch.testing.assert_close(rows["log_ratio"], chain["log_ratio"])


def test_sampled_steps_have_the_distribution_of_the_chain(make_actor: Actor) -> None:
    actor = make_actor(return_chain=True)
    count = 8000
    observation = torch.randn(3).double().expand(count, 3)
    with set_exploration_type(RANDOM), torch.no_grad():
        chain = actor(TensorDict({"observation": observation}, [count]))
        rows = chain_by_steps(actor, actor.sample_prior((count,)), observation)

    ours, theirs = rows["next_latent"][:, -1], chain["latents"][:, -1]
    error = theirs.std(0) / count**0.5
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * 2**0.5 * error).all()
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.05, atol=0)
    spread = chain["log_ratio"].sum(1).std() / count**0.5
    difference = rows["log_ratio"].sum(1).mean() - chain["log_ratio"].sum(1).mean()
    assert difference.abs() < 4 * 2**0.5 * spread
    # Two-sample Kolmogorov-Smirnov statistic per dimension at the 0.1% level.
    for dimension in range(2):
        pooled = torch.cat((ours[:, dimension], theirs[:, dimension])).sort().values
        cdfs = [
            torch.searchsorted(sample[:, dimension].sort().values, pooled, right=True) / count
            for sample in (ours, theirs)
        ]
        assert (cdfs[0] - cdfs[1]).abs().max() < 1.95 * (2 / count) ** 0.5


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_one_step_agrees_with_the_kernels(make_actor: Actor, batch: tuple[int, ...]) -> None:
    actor = make_actor()
    rows = TensorDict(
        {
            "observation": torch.randn(*batch, 3).double(),
            "latent": torch.randn(*batch, 2).double(),
            "step": torch.randint(4, (*batch, 1)),
        },
        batch,
    )
    with set_exploration_type(RANDOM):
        out = DenoisingStepActor(actor)(rows)

    denoising, noising = actor.denoising_kernel(rows), actor.noising_kernel(rows)
    assert out["next_latent"].shape == (*batch, 2)
    assert (out["next_latent"] != denoising.mean).all()
    log_q = gaussian_log_prob(out["next_latent"], denoising)
    torch.testing.assert_close(out["log_prob"], log_q)
    log_p = gaussian_log_prob(rows["latent"], noising)
    torch.testing.assert_close(out["log_ratio"], log_q - log_p)


def test_noise_has_unit_scale_in_the_kernel(make_actor: Actor) -> None:
    actor = make_actor()
    rows = TensorDict(
        {
            "observation": torch.ones(5000, 3).double(),
            "latent": torch.ones(5000, 2).double(),
            "step": torch.ones(5000, 1, dtype=torch.int64),
        },
        [5000],
    )
    with set_exploration_type(RANDOM), torch.no_grad():
        out = DenoisingStepActor(actor)(rows)
        mean, std = actor.denoising_kernel(rows)
    noise = (out["next_latent"] - mean) / std
    assert noise.mean().abs() < 4 / 10_000**0.5
    assert (noise.std() - 1).abs() < 4 / 20_000**0.5


def test_given_noise_decides_the_step(make_actor: Actor) -> None:
    actor = make_actor(noise_key="chain_noise")
    step_actor = DenoisingStepActor(actor, noise_key="noise")
    assert step_actor.in_keys == ["observation", "latent", "step", "noise"]
    rows = TensorDict(
        {
            "observation": torch.randn(5, 3).double(),
            "latent": torch.randn(5, 2).double(),
            "step": torch.randint(4, (5, 1)),
            "noise": torch.randn(5, 2).double(),
        },
        [5],
    )
    with set_exploration_type(RANDOM):
        out = step_actor(rows.clone())
    mean, std = actor.denoising_kernel(rows)
    torch.testing.assert_close(out["next_latent"], mean + std * rows["noise"])
    before = torch.get_rng_state()
    with set_exploration_type(DETERMINISTIC):
        assert torch.equal(step_actor(rows.exclude("noise"))["next_latent"], mean)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_are_shared_not_copied(make_actor: Actor) -> None:
    actor = make_actor()
    step_actor = DenoisingStepActor(actor)
    assert {id(p) for p in step_actor.parameters()} == {id(p) for p in actor.parameters()}


def test_keys_come_from_the_actor_and_may_be_nested(make_actor: Actor) -> None:
    keys = ActorKeys(latent=("r", "x"), next_latent=("r", "y"), step=("r", "n"), log_prob="lp")
    actor = make_actor(keys=keys, in_keys=[("s", "o")])
    step_actor = DenoisingStepActor(actor)
    assert step_actor.in_keys == [("s", "o"), ("r", "x"), ("r", "n")]
    assert step_actor.out_keys == [("r", "y"), "lp", "log_ratio"]
    rows = TensorDict(
        {
            "s": {"o": torch.randn(5, 3).double()},
            "r": {"x": torch.randn(5, 2).double(), "n": torch.zeros(5, 1, dtype=torch.int64)},
        },
        [5],
    )
    out = step_actor(rows)
    assert out["r", "y"].shape == (5, 2)
    assert out["lp"].shape == (5, 1)


def test_keyword_call(make_actor: Actor) -> None:
    step_actor = DenoisingStepActor(make_actor())
    inputs = {
        "observation": torch.randn(5, 3).double(),
        "latent": torch.randn(5, 2).double(),
        "step": torch.zeros(5, 1, dtype=torch.int64),
    }
    with set_exploration_type(DETERMINISTIC):
        values = step_actor(**inputs)
        expected = step_actor(TensorDict(inputs, [5]))
    for value, key in zip(values, step_actor.out_keys, strict=True):
        assert torch.equal(value, expected[key])


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="actor must offer the members of ChainActor, got Linear"):
        DenoisingStepActor(nn.Linear(2, 2))


def test_a_hand_written_actor_is_accepted() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_keys, self.keys, self.denoising_steps = ["observation"], ActorKeys(), 1

        def sample_prior(self, batch_size: tuple[int, ...]) -> torch.Tensor:
            return torch.zeros(*batch_size, 2)

        def denoising_kernel(self, rows: TensorDict) -> Gaussian:
            return Gaussian(torch.full_like(rows["latent"], 3.0), torch.ones_like(rows["latent"]))

        def noising_kernel(self, rows: TensorDict) -> Gaussian:
            return Gaussian(torch.zeros_like(rows["latent"]), torch.ones_like(rows["latent"]))

    rows = TensorDict({"latent": torch.ones(5, 2), "step": torch.zeros(5, 1).long()}, [5])
    with set_exploration_type(DETERMINISTIC):
        out = DenoisingStepActor(Constant())(rows)
    assert (out["next_latent"] == 3).all()
    # log N(3; 3, 1) - log N(1; 0, 1), twice.
    torch.testing.assert_close(out["log_ratio"], torch.full((5, 1), 1.0))
