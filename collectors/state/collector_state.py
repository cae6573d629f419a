"""State of a collector that runs in this process: simulators, counters, generators."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import EnvBase, TransformedEnv

from collectors.environments.gymnasium_env import GymnasiumEnv, gymnasium_env
from collectors.errors import UnsupportedStateError
from collectors.randomness import RandomStream
from collectors.state.object_state import class_name
from collectors.state.simulators import load_simulator_state, simulator_state


def collector_state(collector: BaseCollector) -> dict[str, Any]:
    """Return all that the next rollouts of a collector depend on, apart from its policy.

    Args:
        collector: from :func:`collectors.make_collector`, without worker processes.

    Returns:
        Plain data: loadable with ``torch.load(weights_only=True)``, and independent of what the
        collector does next. ``"outside"`` names what the environments keep on their classes or in
        their modules: it has changed since they were built, and is not part of the state.

    Raises:
        UnsupportedStateError: the collector does not run in this process, or an environment holds
            something whose state cannot be saved.
    """
    local = _local(collector)
    stream = _stream(local)
    return {
        "environments": local.env.batch_size.numel(),
        "outside": _simulators(local).changed_outside(),
        "simulator": simulator_state(_simulators(local).envs),
        "transforms": _cloned(_transforms(local)),
        "carrier": _leaves(local._carrier),
        "frames": local._frames,
        "rollouts": local._iter,
        "trajectories": local._traj_pool.state_dict() if local.track_traj_ids else None,
        "generators": None if stream is None else stream.state_dict(),
    }


def load_collector_state(collector: BaseCollector, state: dict[str, Any]) -> None:
    """Let a collector continue where another one was when its state was saved.

    Args:
        collector: built in the same way as the other one (seeds do not matter), and not iterated
            by anything else meanwhile.
        state: from :func:`collector_state`.

    Raises:
        UnsupportedStateError: the state is that of another environment, or of more or fewer
            copies. Nothing has been changed then.
    """
    local = _local(collector)
    stream = _stream(local)
    environments = local.env.batch_size.numel()
    if state["environments"] != environments:
        raise UnsupportedStateError(
            f"the saved state does not fit: it is that of {state['environments']} environments, "
            f"but here are {environments}; use num_envs={state['environments']}."
        )
    load_simulator_state(_simulators(local).envs, state["simulator"])
    if isinstance(local.env, TransformedEnv):
        local.env.transform.load_state_dict(_cloned(state["transforms"]))
    carrier = local._carrier.empty()
    for path, tensor in state["carrier"]:
        carrier.set(tuple(path), tensor.clone())
    local._carrier = carrier
    local._frames, local._iter = state["frames"], state["rollouts"]
    if local.track_traj_ids:
        local._traj_pool.load_state_dict(state["trajectories"])
    if stream is not None:
        stream.load_state_dict(state["generators"])


@contextmanager
def borrowed_env(
    collector: BaseCollector,
    *,
    seed: int,
    on_restart: Callable[[UnsupportedStateError], None] = lambda error: None,
) -> Iterator[EnvBase]:
    """Lend the environments of a collector, between two of its rollouts.

    Afterwards the collector goes on as if nothing had happened. Where the state of its environments
    cannot be saved, it begins new episodes.

    Args:
        collector: from :func:`collectors.make_collector`, without worker processes.
        seed: of the new episodes.
        on_restart: called with the reason if there are new episodes.

    Raises:
        UnsupportedStateError: the environments are not in this process.
    """
    local = _local(collector)
    try:
        state = collector_state(local)
    except UnsupportedStateError as error:
        on_restart(error)
        state = None
    try:
        yield local.env
    finally:
        if state is None:
            with _stream(local) or nullcontext():
                local.env.set_seed(seed)
                local.reset()
        else:
            load_collector_state(local, state)


def _local(collector: BaseCollector) -> Collector:
    """Return the collector, or raise UnsupportedStateError when it does not run in this process."""
    if type(collector) is not Collector:
        raise UnsupportedStateError(
            f"the state of a {class_name(collector)} cannot be saved: its environments do not run "
            "in this process; collect without workers."
        )
    return collector


def _simulators(collector: Collector) -> GymnasiumEnv:
    env = gymnasium_env(collector.env)
    if env is None:
        raise UnsupportedStateError(
            f"the state of a {class_name(collector.env)} cannot be saved, only that of Gymnasium "
            "environments; build it with collectors.make_env."
        )
    return env


def _stream(collector: Collector) -> RandomStream | None:
    """The collector's own generators; without them it draws from the global ones."""
    owner = getattr(collector.pre_collect_hook, "__self__", None)
    return owner if isinstance(owner, RandomStream) else None


def _transforms(collector: Collector) -> dict[str, Any]:
    is_transformed = isinstance(collector.env, TransformedEnv)
    return dict(collector.env.transform.state_dict()) if is_transformed else {}


def _cloned(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() for key, value in tensors.items()}


def _leaves(carrier: TensorDictBase) -> list[Any]:
    items = carrier.items(include_nested=True, leaves_only=True)
    paths = [((key,) if isinstance(key, str) else key, value) for key, value in items]
    return [[list(path), value.detach().clone()] for path, value in paths]
