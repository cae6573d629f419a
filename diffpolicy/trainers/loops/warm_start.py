"""Starting with the networks of another run: what is taken over, and what has to agree."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.options import flag_name
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.loops.base import RLModule

_ACTOR = "loss.actor_network_params."
# What the values of a critic refer to: how its atoms came about, and the unit of rewards.
_OF_VALUES = ("loss.value_range.", "rewards.")
# Follow from the environment of a run: bounds of its actions.
_OF_ENVIRONMENT = ("squash.low", "squash.high", "action_center", "action_scale")
# What a run has by itself: that, and the noise of its chains, which falls while it trains.
_OWN = (*_OF_ENVIRONMENT, "process.noise_scale")
# Follow from options, and give the parameters their meaning.
_OF_OPTIONS = ("process.prior_std", "process.schedule_factors")


def warm_start(module: RLModule, checkpoint: Checkpoint) -> None:
    """Put the parameters of a checkpoint's networks, and their running statistics, into a module.

    The actor is taken over, between methods that have the same one, too; critics and their targets
    if the method is the same, but not from a clone, which has trained none. Optimisers, counters,
    temperatures and the replay buffer stay new.

    Args:
        module: of a run that begins.
        checkpoint: of the other run.

    Raises:
        ArgumentError: naming ``init_from``, if a network is another one; nothing has changed then.
    """
    theirs: Mapping[str, Tensor] = checkpoint.content["state_dict"]
    ours = module.state_dict()
    _check_windows(module, checkpoint)
    # Cloning trains no critic.
    same_method = checkpoint.state["metadata"]["method"] == module.config.method
    same_method = same_method and not checkpoint.cloned
    names = [name for name in sorted(ours.keys() | theirs.keys()) if _taken(name, same_method)]
    for problem in _differences(module, checkpoint, names):
        raise ArgumentError("init_from", str(checkpoint.path), problem)
    taken = {name: theirs[name] for name in names if not name.endswith(_OWN)}
    module.load_state_dict({**ours, **taken})
    module.warm_parts = ("actor", "critic") if same_method else ("actor",)


def _check_windows(module: RLModule, checkpoint: Checkpoint) -> None:
    """Raise ArgumentError if the other policy reads or plans another number of steps."""
    for name in ("frame_stack", "action_chunk"):
        here, there = getattr(module.config, name), checkpoint.state["config"].get(name, 1)
        if here != there:
            flag = flag_name(name)
            problem = f"is a run with {flag} {there}, and this one has {here}; give {flag} {there}."
            raise ArgumentError("init_from", str(checkpoint.path), problem)


def _taken(name: str, same_method: bool) -> bool:
    critic = "_network_params." in name or name.startswith(_OF_VALUES)
    return name.startswith(_ACTOR) or (same_method and critic)


def _differences(module: RLModule, checkpoint: Checkpoint, names: list[str]) -> Iterator[str]:
    """What is wrong with the networks of a checkpoint, as ends of sentences."""
    ours, theirs = module.state_dict(), checkpoint.content["state_dict"]
    method = checkpoint.state["metadata"]["method"]
    fixed: tuple[str, ...] = _OF_OPTIONS
    if getattr(module.config, "value_range", None) is not None:
        fixed += ("support.atoms",)
    for name in names:
        here, there = ours.get(name), theirs.get(name)
        if here is None or there is None or here.shape != there.shape:
            yield (
                f"is a run of {method} with other networks: "
                f"{name.removeprefix('loss.')} is {_shape(there)} there and {_shape(here)} here; "
                "give this run the environment, sizes and denoising steps of that one."
            )
        elif name.endswith(fixed) and not torch.equal(here.cpu(), there.cpu()):
            yield (
                f"is a run of {method} in which {name.removeprefix('loss.')} is "
                f"{there.tolist()}, and here it is {here.tolist()}; give this run the same options."
            )


def _shape(value: Tensor | None) -> object:
    return "absent" if value is None else list(value.shape)
