"""What a policy reads, what it drives, and how its actor is built, as plain data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from tensordict.utils import unravel_key
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from collectors.environments.gymnasium_env import gymnasium_env
from collectors.environments.spaces import Actions, Entry, observation_entry
from diffpolicy.actors import ActorKeys, ActorRecipe, observation_keys, recipe_of
from diffpolicy.actors.build.actors import make_actor
from diffpolicy.actors.build.sizes import read_sizes
from diffpolicy.errors import ArgumentError
from diffpolicy.policy.spaces import plain_space, space_from_plain

_NAME = "the policy"


@dataclass(frozen=True)
class PolicySpec:
    """All of a policy but its parameters.

    Attributes:
        actor: how its actor is built.
        entries: what it reads of an observation, in the order of their concatenation.
        actions: how its actions get to the environment.
    """

    actor: ActorRecipe
    entries: tuple[Entry, ...]
    actions: Actions

    @classmethod
    def of(cls, actor: Any, env: EnvBase) -> Self | None:
        """The spec of an actor of one of our builders in an environment of :func:`make_env`.

        Returns:
            None for another actor or environment, which no plain data describes; also where
            transforms change what the actor reads or how its actions get to the simulator.
        """
        recipe, own = recipe_of(actor), gymnasium_env(env)
        if recipe is None or own is None or not _is_plain(recipe):
            return None
        keys = [unravel_key(key) for key in observation_keys(actor)]
        by_key = {entry.key: entry for entry in own.entries}
        if not by_key.keys() >= set(keys):
            return None
        spec = cls(recipe, tuple(by_key[key] for key in keys), own.actions)
        return spec if spec._describes(env) else None

    def _describes(self, env: EnvBase) -> bool:
        """Whether an environment still has these entries and actions behind its transforms."""
        specs, action = env.observation_spec_unbatched, env.full_action_spec_unbatched["action"]
        own = _Specs(self)
        same = own.full_action_spec_unbatched["action"] == action.cpu()
        return same and all(specs[e.key].shape == torch.Size(e.shape) for e in self.entries)

    def plain(self) -> dict[str, Any]:
        """Numbers, text and their containers, for a file."""
        observation = [
            {"path": list(entry.path), "space": plain_space(entry.space)} for entry in self.entries
        ]
        action = plain_space(self.actions.space, bounds=True)
        return {"actor": self.actor.plain(), "observation": observation, "action": action}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """The spec that :meth:`plain` has written, through JSON or not.

        Raises:
            ValueError: if this version cannot read it, with the reason.
        """
        entries = (
            observation_entry(_NAME, tuple(entry["path"]), space_from_plain(entry["space"]))
            for entry in data["observation"]
        )
        actions = Actions.of(_NAME, space_from_plain(data["action"]))
        return cls(ActorRecipe.from_plain(data["actor"]), tuple(entries), actions)

    @property
    def action_dim(self) -> int:
        """Number of action dimensions ``A``."""
        return len(self.actions.low)

    def build_actor(self, device: torch.device | str = "cpu") -> Any:
        """The actor, with fresh parameters."""
        keys = [entry.key for entry in self.entries]
        sizes = read_sizes(_Specs(self), keys, self.actor.network, ActorKeys())
        return make_actor(self.actor, sizes, device)

    def check_steps(self, denoising_steps: int) -> None:
        """Raise ArgumentError if such an actor cannot act with this number of denoising steps."""
        process, trained = self.actor.process, self.actor.denoising_steps
        problem = None
        if type(denoising_steps) is not int or denoising_steps < 1:
            problem = "must be a whole number of at least 1"
        elif process is None and denoising_steps != 1:
            problem = "is not possible: this policy is a Gaussian; leave it out"
        elif process is not None and process.step_size_per_step and denoising_steps != trained:
            problem = f"is not possible: steps of sizes of their own fix their number to {trained}"
        if problem is not None:
            raise ArgumentError("denoising_steps", denoising_steps, f"{problem}.")


def _is_plain(recipe: ActorRecipe) -> bool:
    """Whether a file can hold a recipe: a network of one's own in its options has no words."""
    try:
        json.dumps(recipe.plain())
    except TypeError:
        return False
    return True


class _Specs:
    """The specs of an environment, of which builders need no more."""

    def __init__(self, spec: PolicySpec) -> None:
        low, high = torch.from_numpy(spec.actions.low), torch.from_numpy(spec.actions.high)
        self.full_action_spec_unbatched = Composite(action=Bounded(low, high, dtype=torch.float32))
        self.observation_spec_unbatched = Composite()
        for entry in spec.entries:
            dtype = torch.uint8 if entry.dtype is np.uint8 else torch.float32
            self.observation_spec_unbatched[entry.key] = Unbounded(entry.shape, dtype=dtype)
