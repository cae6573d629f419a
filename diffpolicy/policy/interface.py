"""What stands between an environment and the network of a policy, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data import Bounded, Composite, Unbounded

from collectors.environments.frames import stacked_entry
from collectors.environments.spaces import OBSERVATION_KEY, Actions, Entry, observation_entry
from diffpolicy.policy.spaces import plain_space, space_from_plain

_NAME = "the policy"
Bounds = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Interface:
    """What a policy is given and what it gives, and what its network reads and plans.

    Attributes:
        observed: what it is given: the entries of one observation.
        actions: what it gives: one action of the environment.
        frames: how many of the last observations the network reads at once.
        chunk: how many actions the network plans at once.
        rescaled: whether the network plans in ``[-1, 1]``, which is mapped to the bounds of the
            environment.
    """

    observed: tuple[Entry, ...]
    actions: Actions
    frames: int = 1
    chunk: int = 1
    rescaled: bool = False

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """What the network reads, in the order of its concatenation: histories of ``observed``."""
        return tuple(stacked_entry(entry, self.frames) for entry in self.observed)

    @property
    def bounds(self) -> Bounds:
        """Lowest and highest plan ``[chunk * A]``, in the units of the environment."""
        low, high = self.actions.low, self.actions.high
        return np.tile(low, self.chunk), np.tile(high, self.chunk)

    @property
    def network_bounds(self) -> Bounds:
        """The same in the units of the network."""
        low, high = self.bounds
        return (-np.ones_like(low), np.ones_like(high)) if self.rescaled else (low, high)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a plan: ``(chunk, *shape of the action space)``."""
        return (self.chunk, *self.actions.space.shape)

    def words(self) -> str:
        """What is read, and what is planned if it is more than one action."""
        entries = ", ".join(f"{e.name} {e.space.shape}" for e in self.observed)
        history = f"the last {self.frames} of " if self.frames > 1 else ""
        plans = f", plans {self.chunk} actions at once" if self.chunk > 1 else ""
        return f"reads {history}{entries}{plans}"

    def to_environment(self, plan: NDArray[np.float32]) -> NDArray[Any]:
        """Actions ``[*B, *chunk_shape]`` of the environment's type, from plans ``[*B, chunk * A]``.

        Plans are in the units of the environment.
        """
        return self.actions.to_environment(plan.reshape(*plan.shape[:-1], self.chunk, -1))

    def plain(self) -> dict[str, Any]:
        """Numbers, text and their containers, for a file."""
        observation = [
            {"path": list(e.path), "root": list(e.root), "space": plain_space(e.space)}
            for e in self.observed
        ]
        action = plain_space(self.actions.space, bounds=True)
        own = {key: getattr(self, key) for key in ("frames", "chunk", "rescaled")}
        return {"observation": observation, "action": action, **own}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """The interface that :meth:`plain` has written, through JSON or not.

        Raises:
            ValueError: if this version cannot read it, with the reason.
        """
        observed = tuple(
            observation_entry(
                _NAME,
                tuple(entry["path"]),
                space_from_plain(entry["space"]),
                tuple(entry.get("root", [OBSERVATION_KEY])),
            )
            for entry in data["observation"]
        )
        own = {key: data[key] for key in ("frames", "chunk", "rescaled") if key in data}
        return cls(observed, Actions.of(_NAME, space_from_plain(data["action"])), **own)


class Specs:
    """The specs of an environment, of which builders need no more."""

    def __init__(self, interface: Interface) -> None:
        low, high = map(torch.from_numpy, interface.network_bounds)
        self.full_action_spec_unbatched = Composite(action=Bounded(low, high, dtype=torch.float32))
        self.observation_spec_unbatched = Composite()
        for entry in interface.entries:
            dtype = torch.uint8 if entry.dtype is np.uint8 else torch.float32
            self.observation_spec_unbatched[entry.key] = Unbounded(entry.shape, dtype=dtype)
