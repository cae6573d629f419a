"""What a method brings to its Lightning module, and where batches come from."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector
from torchrl.objectives import LossModule


class Parts(Protocol):
    """What a method brings to its Lightning module."""

    @property
    def loss(self) -> LossModule:
        """The loss with all parameters; its ``actor_network`` is the policy."""

    @property
    def diagnostics(self) -> Callable[[], dict[str, float]]:
        """Further numbers to log, read after each iteration."""


class Stream(Protocol):
    """Batches of one rank, an iterable data set of known length."""

    collector: BaseCollector

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[TensorDictBase]: ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next batches depend on, but for the parameters and a replay buffer."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
