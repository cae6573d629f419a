"""Chains that do not lead to the actions beside them: raised, reported or left alone."""

from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from diffpolicy.actors import DenoisingMDP
from objectives.checks import check_choice

ChainCheck = Literal["raise", "report", "off"]
#: Share of chains that do not lead to their actions.
MISLED = "misled_chain_fraction"


def chain_check(check_chains: ChainCheck | None, actor: nn.Module) -> ChainCheck:
    """How a loss compares chains with actions: by default it raises if the actor makes it possible.

    Raises:
        TypeError: if the check is asked for and the actor has no ``squash``.
        ValueError: for anything else.
    """
    check_choice("check_chains", check_chains, ("raise", "report", "off", None))
    possible = hasattr(actor, "squash")
    if check_chains in ("raise", "report") and not possible:
        raise TypeError(
            f"check_chains={check_chains!r} needs an actor with a member squash (an ActionSquash), "
            f"which {type(actor).__name__} lacks."
        )
    if check_chains is None:
        return "raise" if possible else "off"
    return check_chains


def inspect_chains(
    check_chains: ChainCheck, mdp: DenoisingMDP, rows: TensorDictBase
) -> Tensor | None:
    """Compare chains of transitions ``[*B]`` with their actions: 1 where they differ ``[*B, 1]``.

    Raises:
        ValueError: with ``"raise"``, if any does; returns None otherwise, and with ``"off"``.
    """
    if check_chains == "raise":
        raise_misled(mdp, rows)
    if check_chains != "report":
        return None
    return mdp.misled(rows).to(rows.get(mdp.keys.latents))


def raise_misled(mdp: DenoisingMDP, transitions: TensorDictBase) -> None:
    """Raise a ValueError if chains of valid transitions do not lead to their actions.

    Needs a look at the numbers, which waits for a GPU; skipped inside compiled code.
    """
    if torch.compiler.is_compiling():
        return
    misled = mdp.misled(transitions)
    mask = transitions.get(("collector", "mask"), None)
    if mask is not None:
        misled = misled & mask.reshape(misled.shape)
    number = int(misled.sum())
    if number:
        raise ValueError(
            f"{number} of {misled.numel()} chains in {mdp.keys.latents!r} do not lead to the "
            f"{mdp.keys.action!r} beside them. Actions that are not the actor's own (random "
            "steps of a collector, demonstrations, exploration noise after the actor) need "
            "chains of their own: DenoisingMDP(actor).chains_for(observation, action) or the "
            "transform diffpolicy.actors.ActionChains makes them. Or leave such chains as they "
            "are with check_chains='off'."
        )
