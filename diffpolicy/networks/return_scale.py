"""Running size of the discounted return, which takes the unit out of rewards."""

import torch
from torch import Tensor, nn

from diffpolicy.networks.ranks import max_over_ranks, sum_over_ranks

RETURN_LIMIT = 5.0
"""Discounted returns come to at most this much of their size."""


class ReturnScale(nn.Module):
    """Divides rewards by the running size of the discounted return.

    The return up to step ``t`` is ``G_t = r_t + gamma G_{t-1}``, which starts anew with every
    episode, and its size ``max(std(G), max|G| / limit)`` over all steps so far, as SimbaV2 measures
    it (arXiv 2502.15280). Values of scaled rewards are then of the order of one on every task, and
    whatever is measured against them (temperatures, ranges of values, clipping) means the same:
    rewards times a constant give the same scaled rewards.

    Rewards stay as they are where they are stored; scale them when they are used, with the size
    known by then. As long as all rewards have been zero the size is unknown, and so is theirs:
    :meth:`forward` returns zeros.

    The forward pass changes nothing. Show it every step once, in order, with :meth:`add`, and call
    :meth:`update` now and then, on all ranks at the same time. The statistics are buffers, the same
    on all ranks. Returns of running episodes are not: :attr:`running` is for checkpoints.

    Args:
        gamma: discount of a step of the environment.
        limit: scaled returns reach at most this magnitude (those seen before :meth:`update`).

    Attributes:
        size: what rewards are divided by, a scalar; zero while it is unknown.
        running: the returns so far of this rank's running episodes ``[E]``, None before the first.

    Raises:
        ValueError: if gamma is not in [0, 1], or the limit is not positive.

    Examples:
        >>> scale = ReturnScale(gamma=1.0)
        >>> reward = torch.tensor([[[30.0], [-50.0]]])  # one environment, two steps
        >>> scale.add(reward, done=torch.tensor([[[True], [True]]]))
        >>> scale.update()
        >>> float(scale.size)
        40.0
        >>> scale(reward).flatten()
        tensor([ 0.7500, -1.2500])
    """

    size: Tensor
    moments: Tensor
    largest: Tensor

    def __init__(self, gamma: float, *, limit: float = RETURN_LIMIT) -> None:
        super().__init__()
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be between 0 and 1, got {gamma}.")
        if not limit > 0:
            raise ValueError(f"limit must be greater than 0, got {limit}.")
        self.gamma = gamma
        self.limit = limit
        self.register_buffer("size", torch.zeros((), dtype=torch.float64))
        # Number, sum and sum of squares of the returns.
        self.register_buffer("moments", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("largest", torch.zeros((), dtype=torch.float64))
        self.running: Tensor | None = None
        self._new: list[Tensor] = []

    def forward(self, reward: Tensor) -> Tensor:
        """Rewards of any shape, scaled; zeros while the size is unknown."""
        factor = torch.where(self.size > 0, 1 / self.size, 0.0)
        return reward * factor.to(reward)

    @torch.no_grad()
    def add(self, reward: Tensor, done: Tensor, steps: Tensor | None = None) -> None:
        """Take steps that follow those of the last call into account at the next :meth:`update`.

        Args:
            reward: ``[E, T, 1]`` of ``E`` environments, those of the last call.
            done: whether the episode ends with the step, ``[E, T, 1]``.
            steps: steps of the environment in each, where rewards are discounted sums of several,
                ``[E, T, 1]``; None for one.

        Raises:
            ValueError: if the number of environments is another than in the last call.
        """
        rewards = reward.detach().double().squeeze(-1).unbind(1)
        ends = done.squeeze(-1).unbind(1)
        counts = None if steps is None else steps.squeeze(-1).unbind(1)
        running = torch.zeros_like(rewards[0]) if self.running is None else self.running
        if running.shape != rewards[0].shape:
            raise ValueError(
                f"reward must be that of {len(running)} environments, got {len(rewards[0])}."
            )
        for index, (now, end) in enumerate(zip(rewards, ends, strict=True)):
            discount = self.gamma if counts is None else self.gamma ** counts[index]
            returns = now + discount * running
            self._new.append(returns)
            running = torch.where(end, 0.0, returns)
        self.running = running

    @torch.no_grad()
    def update(self) -> None:
        """Merge the returns since the last call into the statistics, over all ranks."""
        returns = torch.stack(self._new).to(self.moments) if self._new else self.moments[:0]
        self._new.clear()
        number = returns.new_tensor(float(returns.numel()))
        new = torch.stack((number, returns.sum(), returns.square().sum()))
        self.moments.add_(sum_over_ranks(new))
        seen = torch.cat((self.largest.reshape(1), returns.abs().flatten())).max()
        self.largest.copy_(max_over_ranks(seen))
        number, total, squares = self.moments.unbind()
        variance = squares / number.clamp_min(1) - (total / number.clamp_min(1)).square()
        std = variance.clamp_min(0).sqrt()
        self.size.copy_(torch.maximum(std, self.largest / self.limit))
