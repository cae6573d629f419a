"""Where the actions come from that the network of a policy is fitted to."""

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

    Raises:
        ValueError: below 1.
    """

    reads = ("candidate_noise",)

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"the number of own actions must be at least 1, got {number}.")
        self.number = number

    def draw(self, loss: "DenoisingRegressionLoss", like: Tensor) -> dict[str, Tensor]:
        """``candidate_noise`` ``[*B, K, N+1, A]``."""
        shape = (*like.shape[:-1], self.number, loss.denoising_steps + 1, like.shape[-1])
        return {"candidate_noise": torch.randn_like(like.new_empty(shape))}

    def __call__(
        self, loss: "DenoisingRegressionLoss", transitions: TensorDictBase, draws: Draws
    ) -> Candidates:
        """K actions with their values."""
        noise = draws.get("candidate_noise", 1)
        action = loss.sample_actions(transitions, self.number, noise)
        return Candidates(action, loss.values(transitions, action))
