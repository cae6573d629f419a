"""Data sets of transitions as the replay buffer of a run has them."""

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from collectors.streams.demonstrations import bounded_actions, finite_entry
from diffpolicy.actors.squashing import action_bounds, env_action_spec
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.loops.updates import OffPolicyParts

_REWARD, _DONE = ("next", "reward"), ("next", "done")
_CLIP = "clip_actions (--clip-actions) clips them"
_ELSEWHERE = "clip them, or rescale them to these"


def fitting_transitions(
    data: TensorDictBase,
    env: EnvBase,
    parts: OffPolicyParts,
    *,
    source: str,
    clip_actions: bool | None = None,
) -> TensorDictBase:
    """The entries of transitions ``[R]`` that updates read, and where episodes end, in memory.

    Types become those of the environment, and a reward or an end of the shape ``[R]`` becomes
    ``[R, 1]``.

    Args:
        data: of somebody else.
        env: only its specs are read.
        parts: of the method; what its ``complete`` writes is not read.
        source: what the data is called in messages.
        clip_actions: whether actions outside of the bounds are cut off; None has no such choice.

    Raises:
        ArgumentError: naming ``data``, if something is missing, not finite, of another shape than
            in the environment, or outside of the bounds of actions.
    """
    written = [] if parts.complete is None else list(parts.complete.out_keys)
    keys: list[NestedKey] = [key for key in parts.keys if key not in (*written, _DONE)]
    example = env.fake_tensordict()
    rows = TensorDict(batch_size=[len(data)])
    for key in (*keys, _DONE):
        value = finite_entry(data, key, source)
        rows.set(key, _as_in(example.get(key), env.batch_dims, value, key, source))
    action_key = parts.loss.tensor_keys.action
    low, high = action_bounds(env_action_spec(env, action_key))
    hint = {None: _ELSEWHERE, False: _CLIP, True: None}[clip_actions]
    rows.set(action_key, bounded_actions(rows[action_key], low, high, source, hint))
    return rows


def _as_in(example: Tensor, dims: int, value: Tensor, key: NestedKey, source: str) -> Tensor:
    """An entry with the type and the shape that it has in the environment ``[*dims, ...]``."""
    shape = example.shape[dims:]
    if shape == (1,) and value.ndim == 1:
        value = value.unsqueeze(-1)
    if value.shape[1:] != shape:
        problem = f"has {key!r} of the shape {list(value.shape[1:])}, the environment {list(shape)}"
        raise ArgumentError("data", source, f"{problem}.")
    if example.dtype == torch.uint8 and value.dtype != torch.uint8:
        problem = f"has {key!r} as {value.dtype}, which are bytes in the environment."
        raise ArgumentError("data", source, problem)
    return value.to(example.dtype, copy=True)
