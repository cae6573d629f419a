"""Transitions of several agents, as losses on single agents read them."""

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor


def per_agent(
    tensordict: TensorDictBase, action_key: NestedKey, batch_size: torch.Size
) -> TensorDictBase:
    """A view of transitions ``[*B]`` of several agents as transitions ``[*B, agents]``.

    As in TorchRL, entries of the action's group (``("agents", "observation")`` beside
    ``("agents", "action")``) hold one value per agent, also in ``next``. All others, such as a
    reward for the team, are the same for every agent.

    Args:
        tensordict: transitions; stays as it is.
        action_key: where the action is.
        batch_size: ``[*B, agents]``.

    Raises:
        ValueError: if the action is in no group, or an entry of its group has other dimensions.
    """
    group = _path(action_key)[:-1]
    if not group:
        raise ValueError(
            f"the batch size is {list(tensordict.batch_size)} but there are actions "
            f"{action_key!r} for {list(batch_size)}: either give the TensorDict that batch size, "
            "or put the entries of the agents into a group, as in ('agents', 'action')."
        )
    dims, extra = tensordict.batch_dims, len(batch_size) - tensordict.batch_dims
    spread = TensorDict(batch_size=batch_size, device=tensordict.device)
    for key, value in tensordict.items(True, True):
        if not isinstance(value, Tensor):
            continue
        path = _path(key)
        inside = path[path[0] == "next" :][: len(group)] == group
        if inside and value.shape[: len(batch_size)] != batch_size:
            raise ValueError(
                f"{key!r} must have the dimensions {list(batch_size)} of the agents' batch, got "
                f"shape {list(value.shape)}."
            )
        if not inside:
            event = value.shape[dims:]
            value = value.reshape(*value.shape[:dims], *[1] * extra, *event)
            value = value.expand(*batch_size, *event)
        spread.set(key, value)
    return spread


def _path(key: NestedKey) -> tuple[str, ...]:
    key = unravel_key(key)
    return (key,) if isinstance(key, str) else tuple(key)
