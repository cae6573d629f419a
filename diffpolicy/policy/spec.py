"""How the actor of a policy is built, and what it reads and drives, as plain data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from tensordict.utils import unravel_key
from torchrl.envs import EnvBase

from diffpolicy.actors import ActorKeys, ActorRecipe, observation_keys, recipe_of
from diffpolicy.actors.build.actors import make_actor
from diffpolicy.actors.build.sizes import read_sizes
from diffpolicy.errors import ArgumentError
from diffpolicy.policy.environment import interface_of
from diffpolicy.policy.interface import Interface, Specs


@dataclass(frozen=True)
class PolicySpec:
    """All of a policy but its parameters.

    Attributes:
        actor: how its actor is built.
        interface: what it is given and what it gives.
    """

    actor: ActorRecipe
    interface: Interface

    @classmethod
    def of(cls, actor: Any, env: EnvBase) -> Self:
        """The spec of an actor of one of our builders in an environment of :func:`make_env`.

        Raises:
            ArgumentError: for another actor or environment, which no plain data describes; also
                where transforms that were added later change what the actor reads or does.
        """
        recipe = recipe_of(actor)
        if recipe is None:
            raise ArgumentError(
                "actor",
                type(actor).__name__,
                "must come from a builder of diffpolicy.actors: other actors cannot be described "
                "in a file.",
            )
        _check_plain(recipe)
        keys = [unravel_key(key) for key in observation_keys(actor)]
        return cls(recipe, interface_of(env, keys))

    def plain(self) -> dict[str, Any]:
        """Numbers, text and their containers, for a file."""
        return {"actor": self.actor.plain(), **self.interface.plain()}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """The spec that :meth:`plain` has written, through JSON or not.

        Raises:
            ValueError: if this version cannot read it, with the reason.
            ArgumentError: if an encoder of one's own cannot be imported.
        """
        return cls(ActorRecipe.from_plain(data["actor"]), Interface.from_plain(data))

    def build_actor(self, device: torch.device | str = "cpu") -> Any:
        """The actor, with fresh parameters."""
        keys = [entry.key for entry in self.interface.entries]
        sizes = read_sizes(Specs(self.interface), keys, self.actor.network, ActorKeys())
        return make_actor(self.actor, sizes, device)

    def check_steps(self, denoising_steps: int) -> None:
        """Raise ArgumentError if such an actor cannot act with this number of denoising steps."""
        process, trained = self.actor.process, self.actor.denoising_steps
        problem = None
        if type(denoising_steps) is not int or denoising_steps < 1:
            problem = "must be a whole number of at least 1"
        elif process is None and denoising_steps != 1:
            problem = "is not possible: this policy is a Gaussian; leave it out"
        elif getattr(process, "step_size_per_step", False) and denoising_steps != trained:
            problem = f"is not possible: steps of sizes of their own fix their number to {trained}"
        if problem is not None:
            raise ArgumentError("denoising_steps", denoising_steps, f"{problem}.")


def _check_plain(recipe: ActorRecipe) -> None:
    """Raise ArgumentError if no file can hold a recipe: for a network of one's own in it."""
    try:
        json.dumps(recipe.plain())
    except TypeError as error:
        problem = f"has a network of your own, which cannot be described in a file ({error})."
        raise ArgumentError("actor", recipe.kind, problem) from error
