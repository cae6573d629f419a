"""Whole chains of an actor, drawn inside of a loss."""

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import PathActor, PathSample


def sample_path(
    actor: PathActor, tensordict: TensorDictBase, noise: Tensor | None, *, checkpoint: bool = False
) -> PathSample:
    """One sampled chain per transition, whatever the exploration type.

    Args:
        actor: draws the chains.
        tensordict: has the observation keys, batch ``[*B]``.
        noise: ``[*B, N+1, A]``; None draws it.
        checkpoint: see :meth:`PathActor.sample_path`.
    """
    # An actor of somebody else need not know options that are not in use.
    options: dict[str, Any] = {} if noise is None else {"noise": noise}
    if checkpoint:
        options["checkpoint"] = True
    # TorchRL runs losses under deterministic exploration.
    with set_exploration_type(ExplorationType.RANDOM):
        return actor.sample_path(tensordict, **options)
