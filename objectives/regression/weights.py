"""How much the actions count that the network of a policy is fitted to."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffpolicy.actors import best_action
from objectives.draws import Draws
from objectives.regression.parts import Candidates, Drawless, Weighted

if TYPE_CHECKING:
    from objectives.regression.loss import DenoisingRegressionLoss


class Evenly(Drawless):
    """All actions, with weight 1."""

    varies = False
    has_entropy = False

    def kept(self, number: int) -> int:
        """All of them."""
        return number

    def __call__(
        self, loss: "DenoisingRegressionLoss", candidates: Candidates, draws: Draws
    ) -> Weighted:
        """The candidates as they are."""
        return Weighted(candidates.action, torch.ones_like(candidates.action[..., :1]))


class AdvantageWeight(nn.Module):
    """The best of the candidates, weighed by its advantage, and uniform actions beside it.

    ``w = relu(max_k Q_k - mean_k Q_k)``, and ``uniform_weight * w`` for each uniform action, which
    keep the policy from narrowing down (arXiv 2405.16173). Where all actions are worth the same,
    nothing is learned.

    Args:
        uniform: number of uniform actions.
        uniform_weight: weight of each, times w; a buffer that may be scheduled.

    Raises:
        ValueError: for negative arguments.
    """

    divides_by_temperature = False
    reads = ("uniform_action",)
    varies = True
    has_entropy = False
    uniform_weight: Tensor

    def __init__(self, uniform: int, uniform_weight: float) -> None:
        super().__init__()
        if uniform < 0 or uniform_weight < 0:
            raise ValueError(
                "uniform and uniform_weight must be at least 0, got "
                f"{uniform} and {uniform_weight}."
            )
        self.uniform = uniform
        self.register_buffer("uniform_weight", torch.tensor(float(uniform_weight)))

    def kept(self, number: int) -> int:
        """The best one, and the uniform ones."""
        return 1 + self.uniform

    def draw(self, loss: "DenoisingRegressionLoss", like: Tensor) -> dict[str, Tensor]:
        """``uniform_action`` ``[*B, U, A]``, in [-1, 1]."""
        shape = (*like.shape[:-1], self.uniform, like.shape[-1])
        return {"uniform_action": 2 * torch.rand_like(like.new_empty(shape)) - 1}

    def forward(
        self, loss: "DenoisingRegressionLoss", candidates: Candidates, draws: Draws
    ) -> Weighted:
        """``1 + U`` actions and weights."""
        value = valued(candidates)
        best = best_action(candidates.action, value).unsqueeze(0)
        weight = (value.amax(0) - value.mean(0)).relu().unsqueeze(0)
        unit = draws.get("uniform_action", 1)
        if unit is None:
            unit = 2 * torch.rand_like(best.expand(self.uniform, *best.shape[1:])) - 1
        others = loss.actor_network.squash.from_unit(unit)
        spread = (self.uniform_weight * weight).expand(self.uniform, *weight.shape[1:])
        return Weighted(torch.cat((best, others)), torch.cat((weight, spread)))


class BestAction(Drawless):
    """The candidate that the critics value most, with weight 1."""

    varies = False
    has_entropy = False

    def kept(self, number: int) -> int:
        """One."""
        return 1

    def __call__(
        self, loss: "DenoisingRegressionLoss", candidates: Candidates, draws: Draws
    ) -> Weighted:
        """The best candidate."""
        best = best_action(candidates.action, valued(candidates)).unsqueeze(0)
        return Weighted(best, torch.ones_like(best[..., :1]))


class BoltzmannWeight(Drawless):
    """All K candidates, weighed by ``K softmax_k(Q_k / T)``: the mirror descent step from them.

    The entropy of the weights, ``-sum_k p_k log p_k`` with ``p = softmax_k(Q / T)``, is what a
    learned temperature follows: ``log K`` less it is the divergence of the step.
    """

    divides_by_temperature = True
    varies = False
    has_entropy = True

    def kept(self, number: int) -> int:
        """All of them."""
        return number

    def __call__(
        self, loss: "DenoisingRegressionLoss", candidates: Candidates, draws: Draws
    ) -> Weighted:
        """The candidates, their weights, and the entropy of these."""
        log_share = (valued(candidates) / loss.temperature()).log_softmax(0)
        share = log_share.exp()
        entropy = -(share * log_share).sum(0)
        return Weighted(candidates.action, share.shape[0] * share, entropy)


def valued(candidates: Candidates) -> Tensor:
    """Values of candidates ``[K, *B, 1]``, which their proposal must have asked for.

    Raises:
        ValueError: without values.
    """
    if candidates.value is None:
        raise ValueError("this weight needs a proposal that values its actions, as OwnActions.")
    return candidates.value
