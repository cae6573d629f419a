"""Updates of off-policy methods: what one of them is, whoever brings the batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Transform
from torchrl.objectives import LossModule

from diffpolicy.trainers.loops.averages import Averages
from diffpolicy.trainers.loops.optimizer import Optimizer


@dataclass(frozen=True)
class OffPolicyParts:
    """What distinguishes one off-policy method from another.

    Attributes:
        loss: the loss with all parameters.
        update: called with a batch ``[B]`` and whether the policy moves; the sum of the ``loss_*``
            entries that it returns is minimised, the other scalars are logged. A critic's
            ``td_error`` goes into the batch.
        keys: entries of a transition that ``update`` reads, and so the replay buffer keeps.
        optimizers: one for each part of the loss, by the name under which it is logged.
        update_policy: called with the batch once the critics have moved; returns the losses of
            what is delayed, which ``update`` then leaves out. None has ``update`` compute all
            losses, for one backward pass.
        warm_up: acts in the random steps, for methods that need more of them than the action;
            None leaves them to the collector.
        write_back: entries that ``update`` changes in a batch and the replay buffer keeps, by the
            name of the entry that they start as.
        policy: acts when transitions are collected; None is the actor of the loss.
        before_update: called with the number of updates before each, and its batch; measures what
            the update needs and is not measured every time.
        after_update: called after each update, for example to move target networks.
        diagnostics: further numbers to log, read after each iteration.
        complete: adds to transitions of others what only the actor writes, its ``out_keys``, such
            as chains; None where there is nothing of that kind.
    """

    loss: LossModule
    update: Callable[[TensorDictBase, bool], Mapping[str, Tensor]]
    keys: list[Any]
    optimizers: Mapping[str, Optimizer]
    update_policy: Callable[[TensorDictBase], Mapping[str, Tensor]] | None = None
    warm_up: TensorDictModuleBase | None = None
    policy: TensorDictModuleBase | None = None
    write_back: Mapping[str, str] = field(default_factory=dict)
    before_update: Callable[[int, TensorDictBase], None] = lambda number, batch: None
    after_update: Callable[[], None] = lambda: None
    diagnostics: Callable[[], dict[str, float]] = field(default=dict)
    complete: Transform | None = None


class Updates:
    """Makes updates of the networks of a method, and keeps the averages of what they report.

    Args:
        parts: of the method.
        optimizers: gives the optimisers of ``parts.optimizers``, in their order.
        policy_delay: the policy takes part in every so many-th update.
        backward: what a backward pass of a sum of losses is.
        begin: called before losses are computed.
        ranks: number of processes that train together.
    """

    def __init__(
        self,
        parts: OffPolicyParts,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer | LightningOptimizer]],
        *,
        policy_delay: int,
        backward: Callable[[Tensor], object] = torch.Tensor.backward,
        begin: Callable[[], None] = lambda: None,
        ranks: int = 1,
    ) -> None:
        self._parts = parts
        self._optimizers = optimizers
        self._policy_delay = policy_delay
        self._backward = backward
        self._begin = begin
        self._ranks = ranks
        # Without those that wait for a reward.
        self._moving = dict(parts.optimizers)
        self._averages = Averages()

    def start(self, *, rewards_seen: bool) -> None:
        """Start new averages.

        Args:
            rewards_seen: whether a reward has differed from zero, for which some optimisers wait.
        """
        self._moving = {
            name: options
            for name, options in self._parts.optimizers.items()
            if rewards_seen or not options.needs_rewards
        }
        self._averages.clear()

    def step(self, batch: TensorDictBase, number: int, *, policy_waits: bool = False) -> None:
        """Make one update, with what the method does before and after it.

        Args:
            batch: transitions ``[B]`` with the rewards that are trained on.
            number: of the update, from 1 on.
            policy_waits: whether the policy stays as it is.
        """
        policy_moves = number % self._policy_delay == 0 and not policy_waits
        parts, before = self._parts, number - 1
        due = {name: o.delayed for name, o in self._moving.items() if before % o.interval == 0}
        later = [name for name, delayed in due.items() if delayed] if policy_moves else []
        first = [name for name, delayed in due.items() if not delayed]
        parts.before_update(before, batch)
        if parts.update_policy is None:
            self._step([*first, *later], lambda: parts.update(batch, policy_moves))
        else:
            self._step(first, lambda: parts.update(batch, False))
            if later:
                self._step(later, partial(parts.update_policy, batch))
        parts.after_update()

    def _step(self, names: Sequence[str], losses: Callable[[], Mapping[str, Tensor]]) -> None:
        """One backward pass of the sum of ``losses``, and a step of the optimisers ``names``."""
        self._begin()
        out = losses()
        moving = [
            (name, options, optimizer)
            for (name, options), optimizer in zip(
                self._parts.optimizers.items(), self._optimizers(), strict=True
            )
            if name in names
        ]
        for *_, optimizer in moving:
            optimizer.zero_grad()
        self._backward(self._total_loss(out, names))
        self._averages.add(out)
        for name, options, optimizer in moving:
            treated = options.treat_gradients(self._parts.loss)
            self._averages.add({f"grad_{what}_{name}": value for what, value in treated.items()})
            optimizer.step()

    def _total_loss(self, out: Mapping[str, Tensor], moving: Sequence[str]) -> Tensor:
        losses = [value for key, value in out.items() if key.startswith("loss_")]
        waiting = [o for name, o in self._parts.optimizers.items() if name not in moving]
        if self._ranks > 1 and waiting:
            # Ranks exchange a gradient of every parameter, hence zeros of what waits.
            sums = [p.sum() for o in waiting for p in o.parameters(self._parts.loss)]
            losses.append(0.0 * torch.stack(sums).sum())
        return torch.stack(losses).sum()

    def averages(self) -> dict[str, float]:
        """Means over the updates since the start, and over the ranks."""
        return self._averages.read()

    def checked(self, averages: Mapping[str, float]) -> dict[str, float]:
        """Those of the averages with which a run ends when they are not finite.

        Clipped gradients may be anything before.
        """
        return {name: value for name, value in averages.items() if self._must_be_finite(name)}

    def _must_be_finite(self, name: str) -> bool:
        options = self._parts.optimizers.get(name.partition("grad_norm_")[2])
        return name.startswith("loss_") or (options is not None and options.grad_limit is None)
