"""Acting with the best of several samples."""

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from diffpolicy.actors.exploration import is_deterministic


class BestOfActor(TensorDictModuleBase):
    """Samples several actions, and takes the one that critics value most.

    Under TorchRL's deterministic exploration types it acts as the actor alone. Five of the
    published methods act in this way, which is a policy of its own: returns with and without it
    should not be compared.

    Args:
        actor: a TensorDict module that writes actions ``[*B, A]``.
        qvalue_network: reads the observation and the action, writes ``value_key`` ``[*B, E, 1]``.
        number: of samples.
        value_key: where the critics write.
        over_critics: values ``[*B, 1]`` from those of the ``E`` critics; None takes the smallest.

    Raises:
        ValueError: if ``number`` is below 1.
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        qvalue_network: TensorDictModuleBase,
        number: int,
        *,
        value_key: str = "state_action_value",
        over_critics: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if number < 1:
            raise ValueError(f"number must be at least 1, got {number}.")
        self.actor = actor
        self.qvalue_network = qvalue_network
        self.number = number
        self.value_key = value_key
        self.over_critics = over_critics or _smallest
        self.in_keys = list(actor.in_keys)
        self.out_keys = [actor.keys.action]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action."""
        (key,) = self.out_keys
        if self.number == 1 or is_deterministic():
            return tensordict.set(key, self.actor(tensordict.copy())[key])
        observed = tensordict.select(*self.in_keys)
        rows = observed.expand(self.number, *observed.batch_size).contiguous()
        action = self.actor(rows)[key]
        with torch.no_grad():
            value = self.over_critics(self.qvalue_network(rows)[self.value_key])
        return tensordict.set(key, best_action(action, value))


def best_action(action: Tensor, value: Tensor) -> Tensor:
    """The action ``[*B, A]`` of ``[K, *B, A]`` with the largest value of ``[K, *B, 1]``."""
    best = value.argmax(0, keepdim=True)
    return action.gather(0, best.expand(1, *action.shape[1:])).squeeze(0)


def _smallest(value: Tensor) -> Tensor:
    return value.amin(-2)
