"""What policies with histories and plans see of demonstrations: last observations, next actions."""

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor

from collectors.collection.rollouts import CHUNK_LENGTH_KEY
from diffpolicy.errors import ArgumentError
from diffpolicy.networks.encoders import channels_last

#: Entries that say where episodes end, see :func:`episode_ends`.
END_KEYS: tuple[NestedKey, ...] = (("next", "done"), "done", "episode")
_SOURCE = "the data set"


def demonstrated_windows(
    data: TensorDictBase,
    observation_keys: Sequence[NestedKey],
    *,
    action_key: NestedKey = "action",
    frame_stack: int = 1,
    action_chunk: int = 1,
    source: str = _SOURCE,
) -> TensorDictBase:
    """Rows as an environment with ``frame_stack`` and ``action_chunk`` shows them.

    Every transition becomes a row, not only those at which a policy with chunks would plan. Its
    observation is the last ``frame_stack`` ones, the oldest first, joined as by
    :func:`collectors.make_env`: an episode begins with copies of its first. Its action is the next
    ``action_chunk`` ones of the episode; behind its end the last one is repeated, as in the code of
    arXiv 2303.04137. The environment executes nothing of that.

    Args:
        data: transitions ``[R]``, one after the other in each episode.
        observation_keys: observations, vectors ``[R, F]`` or images.
        action_key: of the action ``[R, A]``.
        frame_stack: number of observations ``K``.
        action_chunk: number of actions ``H``.
        source: what the data are called in messages.

    Returns:
        Observations, ``[R, K * F]`` for vectors, and actions ``[R, H * A]``; nothing else.

    Raises:
        ArgumentError: naming ``data``, if it does not say where episodes end.
    """
    rows = data.select(*observation_keys, action_key)
    if frame_stack == action_chunk == 1:
        return rows
    first, last = _episode_bounds(data, source)
    here = torch.arange(len(data)).unsqueeze(-1)
    frames = (here + torch.arange(1 - frame_stack, 1)).maximum(first.unsqueeze(-1))
    for key in observation_keys:
        rows.set(key, _joined([rows.get(key)[index] for index in frames.unbind(-1)]))
    actions = (here + torch.arange(action_chunk)).minimum(last.unsqueeze(-1))
    return rows.set(action_key, rows.get(action_key)[actions].flatten(1))


def demonstrated_transitions(
    data: TensorDictBase,
    observation_keys: Sequence[NestedKey],
    *,
    gamma: float,
    action_key: NestedKey = "action",
    frame_stack: int = 1,
    action_chunk: int = 1,
    source: str = _SOURCE,
) -> TensorDictBase:
    """Transitions as an environment with ``frame_stack`` and ``action_chunk`` makes them.

    A chunk begins at every transition. It ends with the episode, if that is earlier; where the
    data break off before either, there is no row.

    Args:
        data: transitions ``[R]``, one after the other in each episode, with ``next``: observations,
            ``reward``, ``done`` and ``terminated`` ``[R, 1]``.
        observation_keys: observations, vectors ``[R, F]`` or images.
        gamma: discount of a step of the environment.
        action_key: of the action ``[R, A]``.
        frame_stack: number of observations ``K``.
        action_chunk: number of actions ``H``.
        source: what the data are called in messages.

    Returns:
        Rows ``[M]``, ``M <= R``: observations and actions as of :func:`demonstrated_windows`, and
        in ``next`` what follows the chunk: observations, the discounted sum of its rewards, and the
        flags of its last step. ``steps_to_next_obs`` is the number of its steps ``n`` ``[M, 1]``.

    Raises:
        ArgumentError: naming ``data``, if it does not say where episodes end.
    """
    rows = demonstrated_windows(
        data,
        observation_keys,
        action_key=action_key,
        frame_stack=frame_stack,
        action_chunk=action_chunk,
        source=source,
    )
    first, last = _episode_bounds(data, source)
    here, following = torch.arange(len(data)), data["next"]
    end = (here + action_chunk - 1).minimum(last)
    before = (end.unsqueeze(-1) + torch.arange(2 - frame_stack, 1)).maximum(first.unsqueeze(-1))
    for key in observation_keys:
        frames = [data.get(key)[index] for index in before.unbind(-1)]
        rows.set(unravel_key(("next", key)), _joined([*frames, following.get(key)[end]]))
    reward = torch.zeros_like(following["reward"])
    for step in range(action_chunk):
        within = (here + step <= end).unsqueeze(-1)
        later = following["reward"][(here + step).minimum(end)]
        reward = reward + torch.where(within, gamma**step * later, 0.0)
    rows.set(("next", "reward"), reward)
    for key in ("done", "terminated"):
        rows.set(("next", key), following[key][end])
    length = (end - here + 1).unsqueeze(-1)
    rows.set(CHUNK_LENGTH_KEY, length)
    whole = (length == action_chunk) | rows["next", "done"].bool()
    return rows[whole.squeeze(-1)]


def episode_ends(data: TensorDictBase, source: str = _SOURCE) -> Tensor:
    """Which transitions are the last of their episodes, booleans ``[R]``.

    Those at which ``next.done`` says so, or ``done`` where there is none, and those before another
    number in ``episode``.

    Args:
        data: transitions ``[R]``.
        source: what they are called in messages.

    Raises:
        ArgumentError: naming ``data``, if none of these is there or no episode ends.
    """
    ends = torch.zeros(len(data), dtype=torch.bool)
    following, done, number = (data.get(key, None) for key in END_KEYS)
    done = done if following is None else following
    if done is not None:
        ends |= done.reshape(-1).bool()
    if number is not None:
        number = number.reshape(-1)
        ends[:-1] |= number[1:] != number[:-1]
    elif not ends.any():
        problem = (
            "does not say where episodes end, which histories and chunks of actions need: in "
            "next.done (or done), true at the last transition of each, or in episode, their "
            "numbers."
        )
        raise ArgumentError("data", source, problem)
    ends[-1] = True
    return ends


def _episode_bounds(data: TensorDictBase, source: str) -> tuple[Tensor, Tensor]:
    """Index of the first and of the last transition of each one's episode, ``[R]`` each."""
    ends = episode_ends(data, source)
    episode = ends.cumsum(0) - ends.long()
    last = ends.nonzero().squeeze(-1)
    first = torch.cat((last.new_zeros(1), last[:-1] + 1))
    return first[episode], last[episode]


def _joined(frames: list[Tensor]) -> Tensor:
    """Frames ``[R, *shape]`` as one observation: images have more channels, vectors get longer."""
    shape = frames[0].shape[1:]
    first = len(shape) == 3 and not channels_last(tuple(shape))
    return torch.cat(frames, -3 if first else -1)
