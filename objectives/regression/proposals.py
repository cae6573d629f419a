"""Where the actions come from that the network of a policy is fitted to."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import Tensor

from objectives.draws import Draws
from objectives.regression.parts import Candidates, Drawless

if TYPE_CHECKING:
    from objectives.regression.loss import DenoisingRegressionLoss


class ReplayedActions(Drawless):
    """The actions of the replay buffer."""

    number = 1

    def __call__(
        self, loss: "DenoisingRegressionLoss", transitions: TensorDictBase, draws: Draws
    ) -> Candidates:
        """One action for each transition, without a value."""
        return Candidates(loss.valid_actions(transitions).unsqueeze(0))


class OwnActions:
    """Actions of the policy itself, valued by the critics.

    Args:
        number: K, for each transition.
        spread: std of normal noise that is added, in [-1, 1] units. A policy that clones samples of
            its own narrows at every step; this keeps it from becoming a point.
        delayed: whether they are the target actor's, of a loss with ``delay_actor=True``.

    Raises:
        ValueError: for arguments outside their range.
    """

    divides_by_temperature = False
    reads = ("candidate_noise", "spread_noise")

    def __init__(self, number: int, *, spread: float = 0.0, delayed: bool = False) -> None:
        if number < 1:
            raise ValueError(f"the number of own actions must be at least 1, got {number}.")
        if spread < 0:
            raise ValueError(f"spread must be at least 0, got {spread}.")
        self.number = number
        self.spread = spread
        self.delayed = delayed

    def draw(self, loss: "DenoisingRegressionLoss", like: Tensor) -> dict[str, Tensor]:
        """``candidate_noise`` ``[*B, K, N+1, A]`` and ``spread_noise`` ``[*B, K, A]``."""
        batch, size = (*like.shape[:-1], self.number), like.shape[-1]
        return {
            "candidate_noise": torch.randn_like(
                like.new_empty(*batch, loss.denoising_steps + 1, size)
            ),
            "spread_noise": torch.randn_like(like.new_empty(*batch, size)),
        }

    def __call__(
        self, loss: "DenoisingRegressionLoss", transitions: TensorDictBase, draws: Draws
    ) -> Candidates:
        """K actions with their values."""
        noise = draws.get("candidate_noise", 1)
        action = loss.sample_actions(transitions, self.number, noise, delayed=self.delayed)
        if self.spread > 0:
            moved = draws.get("spread_noise", 1)
            moved = torch.randn_like(action) if moved is None else moved
            squash = loss.actor_network.squash
            action = squash.from_unit(squash.to_unit(action).to(action) + self.spread * moved)
        return Candidates(action, loss.values(transitions, action))


class ImprovedActions(Drawless):
    """Actions of the replay buffer, moved uphill in the critics' value, and written back.

    Every action takes steps of Adam in [-1, 1] units (arXiv 2305.13122) from where it was left the
    last time. Where that is, is the entry ``improved_action`` ``[*B, A]`` of the transitions, which
    is written unless they are locked; without it the ascent starts at the action itself.

    Args:
        steps: of the ascent.
        lr: length of the first step of each dimension.

    Raises:
        ValueError: for arguments outside their range.
    """

    number = 1
    key = "improved_action"

    def __init__(self, steps: int, lr: float) -> None:
        if steps < 1 or lr <= 0:
            raise ValueError(f"steps must be at least 1 and lr above 0, got {steps} and {lr}.")
        self.steps = steps
        self.lr = lr

    def __call__(
        self, loss: "DenoisingRegressionLoss", transitions: TensorDictBase, draws: Draws
    ) -> Candidates:
        """The improved actions."""
        squash, start = loss.actor_network.squash, loss.valid_actions(transitions)
        stored = transitions.get(self.key, None)
        start = start if stored is None else loss.valid_actions(transitions, stored)

        def value(unit: Tensor) -> Tensor:
            each = loss.each_value(transitions, squash.from_unit(unit))
            return loss.critic.over_critics(each).sum()

        unit = uphill(value, squash.to_unit(start).to(start), self.steps, self.lr)
        action = squash.from_unit(unit)
        if stored is not None and not transitions.is_locked:
            transitions.set(self.key, action)
        return Candidates(action.unsqueeze(0))


def uphill(
    value: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-5,
) -> Tensor:
    """Steps of Adam (arXiv 1412.6980) that increase a function inside of [-1, 1].

    Args:
        value: the sum of a function of each row.
        start: ``[*B, A]``.
        steps: number of steps.
        lr: learning rate.
        betas: decays of the two moments.
        eps: added to the root of the second one.
    """
    gradient_of, place = torch.func.grad(value), start
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        gradient = gradient_of(place)
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient.square()
        size = (second / (1 - betas[1] ** step)).sqrt() + eps
        place = (place + lr * first / (1 - betas[0] ** step) / size).clamp(-1, 1)
    return place
