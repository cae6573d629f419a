"""Data sets of transitions as the replay buffer of a run has them."""

from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.envs import EnvBase

from collectors import demonstrated_transitions
from collectors.collection.rollouts import CHUNK_LENGTH_KEY
from collectors.streams.demonstrations import bounded_actions, finite_entry
from diffpolicy.actors.squashing import action_bounds, env_action_spec
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.loops.updates import OffPolicyParts

_REWARD, _DONE = ("next", "reward"), ("next", "done")
_CLIP = "clip_actions (--clip-actions) clips them"
_ELSEWHERE = "clip them, or rescale them to these"


class FittingData(NamedTuple):
    """A data set as a run reads it.

    Attributes:
        rows: what updates read ``[M]``, in memory.
        steps: ``next.reward`` and ``next.done`` of the steps of the environment ``[R]``.
    """

    rows: TensorDictBase
    steps: TensorDictBase


def fitting_transitions(
    data: TensorDictBase,
    env: EnvBase,
    parts: OffPolicyParts,
    config: OffPolicyConfig,
    *,
    source: str,
    clip_actions: bool | None = None,
) -> FittingData:
    """The entries of transitions ``[R]`` that updates read, and where episodes end, in memory.

    Types become those of the environment, and a reward or an end of the shape ``[R]`` becomes
    ``[R, 1]``. Histories and chunks of actions are made of them, see
    :func:`collectors.demonstrated_transitions`.

    Args:
        data: of somebody else.
        env: only its specs are read.
        parts: of the method; what its ``complete`` writes is not read.
        config: its ``frame_stack``, ``action_chunk`` and ``gamma``.
        source: what the data is called in messages.
        clip_actions: whether actions outside of the bounds are cut off; None has no such choice.

    Raises:
        ArgumentError: naming ``data``, if something is missing, not finite, of another shape than
            in the environment, or outside of the bounds of actions.
    """
    written = [] if parts.complete is None else list(parts.complete.out_keys)
    keys: list[NestedKey] = [key for key in parts.keys if key not in (*written, _DONE)]
    action_key = parts.loss.tensor_keys.action
    rows = TensorDict(batch_size=[len(data)])
    for key in (*keys, _DONE):
        value = finite_entry(data, key, source)
        # One number in every row, as some data sets have them.
        rows.set(key, value.unsqueeze(-1) if value.ndim == 1 else value)
    bounds = action_bounds(env_action_spec(env, action_key))
    low, high = (bound[: len(bound) // config.action_chunk] for bound in bounds)
    hint = {None: _ELSEWHERE, False: _CLIP, True: None}[clip_actions]
    rows.set(action_key, bounded_actions(rows[action_key], low, high, source, hint))
    ends = {"reward": rows[_REWARD].float(), "done": rows[_DONE].bool()}
    steps = TensorDict({"next": TensorDict(ends, rows.batch_size)}, rows.batch_size)
    if config.frame_stack * config.action_chunk > 1:
        numbered = data.select("episode", strict=False)
        rows = demonstrated_transitions(
            rows.update(numbered),
            [key for key in keys if unravel_key(("next", key)) in keys],
            gamma=config.gamma,
            action_key=action_key,
            frame_stack=config.frame_stack,
            action_chunk=config.action_chunk,
            source=source,
        )
        if config.action_chunk == 1:
            # As replay has them: transitions of one step say nothing of their length.
            rows = rows.exclude(CHUNK_LENGTH_KEY)
    example = env.fake_tensordict()
    for key in (*keys, _DONE):
        rows.set(key, _as_in(example.get(key), env.batch_dims, rows[key], key, source))
    return FittingData(rows, steps)


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
