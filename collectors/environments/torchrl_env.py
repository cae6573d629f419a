"""TorchRL environments of any making, as copies with one batch dimension."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from tensordict import TensorDictBase
from torchrl.data import Bounded
from torchrl.envs import CatFrames, Compose, EnvBase, SerialEnv, TransformedEnv

from collectors.environments.observed import observed_entries
from collectors.environments.simulator_env import EnvLayer
from collectors.environments.sources import Source
from diffpolicy.errors import ArgumentError
from diffpolicy.networks.encoders import channels_last


class Borrowed(TransformedEnv):
    """An environment that stays open: it belongs to somebody else."""

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Do nothing."""


class OneCopy(EnvLayer):
    """An environment without a batch as a batch of one.

    Args:
        env: has the batch size ``[]``.
    """

    def __init__(self, env: EnvBase) -> None:
        super().__init__(device=env.device, batch_size=[1])
        self.base_env = env
        self.action_spec = env.action_spec.unsqueeze(0)
        self.observation_spec = env.observation_spec.unsqueeze(0)
        self.reward_spec = env.reward_spec.unsqueeze(0)
        self.done_spec = env.done_spec.unsqueeze(0)
        self.is_closed = False

    def _set_seed(self, seed: int | None) -> None:
        self.base_env.set_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        state = None if tensordict is None else tensordict.exclude("_reset")[0]
        return self.base_env.reset(state, **kwargs).unsqueeze(0)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.base_env.step(tensordict[0])["next"].unsqueeze(0)


class FramedEnv(TransformedEnv):
    """An environment whose observations are histories, the oldest first.

    Vectors are joined to longer ones, images have ``frames`` times as many channels. An episode
    begins with copies of its first observation.

    Attributes:
        frames: number of observations in each.
    """

    frames: int

    @classmethod
    def of(cls, env: EnvBase, frames: int, names: Sequence[str] | None) -> "FramedEnv":
        """Histories of the entries ``names``; by default of all vectors and images."""
        entries = observed_entries(env, names)
        first = [e.key for e in entries if e.is_image and not channels_last(e.shape)]
        last = [e.key for e in entries if e.key not in first]
        stacks = [
            CatFrames(N=frames, dim=dim, in_keys=keys, padding="same")
            for keys, dim in ((last, -1), (first, -3))
            if keys
        ]
        framed = cls(env, Compose(*stacks), auto_unwrap=False)
        framed.frames = frames
        return framed


def torchrl_copies(
    source: Source, first: EnvBase, num_envs: int, *, keep_batch: bool = False
) -> EnvBase:
    """Copies of a TorchRL environment.

    Args:
        source: what builds it.
        first: what it has built.
        num_envs: number of copies.
        keep_batch: whether an environment with a batch of its own keeps that, whatever
            ``num_envs`` says.

    Returns:
        An environment with batch size ``[num_envs]``.

    Raises:
        ArgumentError: it has another number of copies, or unsuitable actions.
    """
    try:
        _check_actions(source.name, first)
        env = _batched(source, first, num_envs, keep_batch)
    except BaseException:
        if source.instance is None:
            first.close(raise_if_closed=False)
        raise
    return env if source.instance is None else Borrowed(env, auto_unwrap=False)


def _batched(source: Source, first: EnvBase, num_envs: int, keep_batch: bool) -> EnvBase:
    if first.batch_dims > 1:
        raise ArgumentError(
            "name",
            source.name,
            f"has the batch size {tuple(first.batch_size)}, but one dimension is needed; flatten "
            "it with torchrl.envs.BatchSizeTransform.",
        )
    if first.batch_dims == 1:
        if first.batch_size[0] == num_envs or keep_batch:
            return first
        size = first.batch_size[0]
        raise ArgumentError(
            "num_envs",
            num_envs,
            f"must be {size}, the number of copies in {source.name}; or give a factory with an "
            "argument num_envs, which then builds as many as are needed.",
        )
    if source.instance is None:
        first.close(raise_if_closed=False)
        return SerialEnv(num_envs, partial(source.build, 1))
    if num_envs > 1:
        problem = "must be 1 for one environment that has been built; give a factory instead of it."
        raise ArgumentError("num_envs", num_envs, problem)
    return OneCopy(first)


def _check_actions(name: str, env: EnvBase) -> None:
    """Raise ArgumentError unless the action is one bounded vector of floats under ``action``."""
    if list(env.action_keys) != ["action"]:
        raise ArgumentError(
            "name",
            name,
            f"has the actions {env.action_keys}, but one named 'action' is needed; rename it with "
            "torchrl.envs.RenameTransform.",
        )
    spec: Any = env.action_spec
    bounded = isinstance(spec, Bounded) and spec.dtype.is_floating_point
    if not (bounded and spec.space.low.isfinite().all() and spec.space.high.isfinite().all()):
        raise ArgumentError(
            "name",
            name,
            f"has the action spec {spec}, but only bounded continuous actions are supported; give "
            "it a torchrl.data.Bounded of floats.",
        )
