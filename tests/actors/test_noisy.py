"""Actors that act with noise in training."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import DenoisingActor, NoisyActor

ActorFactory = Callable[..., DenoisingActor]
LOW, HIGH = torch.tensor([-2.0, 0.1]).double(), torch.tensor([2.0, 0.3]).double()
ROWS = 4_000


class Alpha(nn.Module):
    """A number that can be changed."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))

    def forward(self) -> Tensor:
        return self.value


def units(actor: NoisyActor, exploration: ExplorationType) -> Tensor:
    """Actions in [-1, 1] units, of many equal states and equal chains."""
    torch.manual_seed(0)
    batch = TensorDict({"observation": torch.zeros(ROWS, 3).double()}, [ROWS])
    batch["noise"] = torch.zeros(ROWS, 5, 2).double()
    with set_exploration_type(exploration), torch.no_grad():
        action = actor(batch)["action"]
    return 2 * (action - LOW) / (HIGH - LOW) - 1


def test_noise_scales_with_alpha_and_stays_in_the_bounds(make_actor: ActorFactory) -> None:
    alpha = Alpha(1.0)
    policy = make_actor(noise_key="noise")
    actor = NoisyActor(policy, alpha, 0.02)
    point = units(NoisyActor(policy, alpha, 0.0), ExplorationType.RANDOM)
    for value in (1.0, 3.0):
        alpha.value.fill_(value)
        noise = units(actor, ExplorationType.RANDOM) - point
        torch.testing.assert_close(
            noise.std(0), torch.full((2,), 0.02 * value).double(), rtol=0.05, atol=0
        )
    alpha.value.fill_(1000.0)
    assert float(units(actor, ExplorationType.RANDOM).abs().max()) <= 1 + 1e-9


@pytest.mark.parametrize("kind", [ExplorationType.DETERMINISTIC, ExplorationType.MEAN])
def test_deterministic_acting_has_no_noise(make_actor: ActorFactory, kind: ExplorationType) -> None:
    policy = make_actor(noise_key="noise")
    noisy = units(NoisyActor(policy, Alpha(5.0), 0.1), kind)
    assert torch.equal(noisy, units(NoisyActor(policy, Alpha(5.0), 0.0), kind))
    assert not noisy.diff(dim=0).any()


def test_workers_are_sent_alpha_and_a_negative_scale_is_refused(make_actor: ActorFactory) -> None:
    actor = NoisyActor(make_actor(), Alpha(2.0), 0.1)
    assert "alpha.value" in dict(actor.named_buffers())
    with pytest.raises(ValueError, match=r"scale must be at least 0, got -0\.1"):
        NoisyActor(make_actor(), Alpha(2.0), -0.1)
