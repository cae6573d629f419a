"""Reading rollouts from a collector, and refusing those that nothing can be learned from."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.collectors import BaseCollector, Collector

from collectors.environments.observed import CHUNK_STEPS_KEY
from collectors.environments.spaces import EPISODE_REWARD_KEY
from collectors.errors import CollectionError, NonFiniteError, describe

#: How many environment steps a row is, in rollouts of chunks of actions.
CHUNK_LENGTH_KEY = "steps_to_next_obs"


class RolloutReader:
    """Reads one rollout after the other, each made with the policy as it is by then.

    Args:
        collector: yields rollouts ``[E, T]``; see :func:`collectors.make_collector`.

    Attributes:
        frames: environment steps read so far.
    """

    def __init__(self, collector: BaseCollector) -> None:
        self.frames = 0
        self._collector = collector
        self._has_copies = not _acts_itself(collector)
        self._rollouts: Iterator[TensorDictBase] | None = None

    def read(self) -> TensorDictBase:
        """Collect and return the next rollout ``[E, T]``.

        Raises:
            CollectionError: the environment or the policy has raised.
            WorkerError: a worker process has raised or died.
            RuntimeError: the collector has come to its end.
        """
        if self._rollouts is None:
            self._rollouts = iter(self._collector)
        elif self._has_copies and isinstance(self._collector.policy, torch.nn.Module):
            self._collector.update_policy_weights_()
        try:
            rollout = next(self._rollouts, None)
        except CollectionError:
            raise
        except Exception as error:
            raise CollectionError(
                f"the environment or the policy raised {describe(error)}"
            ) from error
        if rollout is None:
            raise RuntimeError(
                f"the collector stopped after {self.frames} frames; build it with total_frames=-1 "
                "or read fewer rollouts."
            )
        lengths = rollout.get(("next", CHUNK_STEPS_KEY), None)
        if lengths is not None:
            # Where TorchRL's losses look for the length of returns of several steps.
            rollout.set(CHUNK_LENGTH_KEY, lengths)
        self.frames += environment_steps(rollout)
        return rollout


def _acts_itself(collector: BaseCollector) -> bool:
    """Whether a collector acts with the policy itself, and would copy its parameters to themselves.

    Rollouts of one step, as those of off-policy methods, would do so at every step.
    """
    return (
        type(collector) is Collector
        and collector.get_weights_fn is None
        # It counts how often the policy has changed.
        and collector.policy_version_tracker is None
    )


def environment_steps(rollout: TensorDictBase) -> int:
    """The number of environment steps in rows: one each, or as many as their chunks took."""
    lengths = rollout.get(CHUNK_LENGTH_KEY, None)
    return rollout.numel() if lengths is None else int(lengths.sum())


def check_finite(rollout: TensorDictBase, keys: Sequence[NestedKey] | None = None) -> None:
    """Raise NonFiniteError when a rollout ``[E, T]`` holds NaN or infinite numbers.

    Args:
        rollout: ``[E, T]``.
        keys: entries to check; by default every floating-point entry, the environment's first
            (observations, reward, next observations), then what the policy wrote.

    Raises:
        NonFiniteError: names the entry, the environment index and the time index of the first one.
    """
    if keys is None:
        keys = check_order(rollout, rollout.keys(True, True))
    for key in keys:
        value = rollout[key]
        if not value.is_floating_point() or bool(value.isfinite().all()):
            continue
        bad = ~value.isfinite().flatten(2).all(-1)
        # The earliest time first: that is where the trouble began.
        time, env = bad.T.nonzero()[0].tolist()
        entry = value[env, time].flatten()
        raise NonFiniteError(
            f"rollout entry {key!r} is not finite: {entry[~entry.isfinite()][0].item()} at "
            f"environment index {env}, time index {time} ({int(bad.sum())} of {bad.numel()} rows); "
            "check the environment (or the policy, if only its outputs are bad). The rollout was "
            "not trained on."
        )


def check_order(rollout: TensorDictBase, keys: Iterable[NestedKey]) -> list[NestedKey]:
    """Sort the entries of a rollout into the order in which trouble spreads.

    What the environment writes comes first (observations, reward, next observations), then what
    the policy wrote.
    """
    return sorted(keys, key=partial(_rank, rollout))


def _rank(rollout: TensorDictBase, key: NestedKey) -> tuple[int, str]:
    path = (key,) if isinstance(key, str) else key
    name = ".".join(path)
    if path[0] == "next":
        return (1 if path[-1] == "reward" else 2), name
    # Only what the environment writes comes again at the next time; sums of rewards come late.
    observed = ("next", *path) in rollout.keys(True) and key != EPISODE_REWARD_KEY
    return (0 if observed else 3), name
