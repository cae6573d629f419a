"""State of a collector that runs in this process: simulators, counters, noise."""

from typing import Any

from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import EnvBase, GymWrapper, TransformedEnv

from collectors.collection.noise import NoiseStream
from collectors.errors import UnsupportedStateError
from collectors.state.object_state import class_name
from collectors.state.simulators import load_simulator_state, simulator_state


def collector_state(collector: BaseCollector) -> dict[str, Any]:
    """Return all that the next rollouts of a collector depend on, apart from its policy.

    Args:
        collector: from :func:`collectors.make_collector`, without worker processes.

    Returns:
        Plain data: loadable with ``torch.load(weights_only=True)``, and independent of what the
        collector does next.

    Raises:
        UnsupportedStateError: the collector does not run in this process, or an environment holds
            something whose state cannot be saved.
    """
    local = _local(collector)
    noise = _noise(local)
    return {
        "environments": local.env.batch_size.numel(),
        "simulator": simulator_state(_simulator(local)),
        "transforms": _cloned(_transforms(local)),
        "carrier": _leaves(local._carrier),
        "frames": local._frames,
        "rollouts": local._iter,
        "trajectories": local._traj_pool.state_dict() if local.track_traj_ids else None,
        "noise": None if noise is None else noise.state_dict(),
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
    noise = _noise(local)
    environments = local.env.batch_size.numel()
    if state["environments"] != environments:
        raise UnsupportedStateError(
            f"the saved state does not fit: it is that of {state['environments']} environments, "
            f"but here are {environments}; use num_envs={state['environments']}."
        )
    load_simulator_state(_simulator(local), state["simulator"])
    if isinstance(local.env, TransformedEnv):
        local.env.transform.load_state_dict(_cloned(state["transforms"]))
    carrier = local._carrier.empty()
    for path, tensor in state["carrier"]:
        carrier.set(tuple(path), tensor.clone())
    local._carrier = carrier
    local._frames, local._iter = state["frames"], state["rollouts"]
    if local.track_traj_ids:
        local._traj_pool.load_state_dict(state["trajectories"])
    if noise is not None:
        noise.load_state_dict(state["noise"])


def _local(collector: BaseCollector) -> Collector:
    """Return the collector, or raise UnsupportedStateError when it does not run in this process."""
    if type(collector) is not Collector:
        raise UnsupportedStateError(
            f"the state of a {class_name(collector)} cannot be saved: its environments do not run "
            "in this process; collect without workers."
        )
    return collector


def _simulator(collector: Collector) -> Any:
    env: EnvBase = collector.env
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if not isinstance(env, GymWrapper):
        raise UnsupportedStateError(
            f"the state of a {class_name(env)} cannot be saved, only that of Gymnasium "
            "environments; build it with collectors.make_env."
        )
    return env._env


def _noise(collector: Collector) -> NoiseStream | None:
    """The collector's own noise; without it the noise is that of the global random state."""
    owner = getattr(collector.pre_collect_hook, "__self__", None)
    return owner if isinstance(owner, NoiseStream) else None


def _transforms(collector: Collector) -> dict[str, Any]:
    is_transformed = isinstance(collector.env, TransformedEnv)
    return dict(collector.env.transform.state_dict()) if is_transformed else {}


def _cloned(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() for key, value in tensors.items()}


def _leaves(carrier: TensorDictBase) -> list[Any]:
    items = carrier.items(include_nested=True, leaves_only=True)
    paths = [((key,) if isinstance(key, str) else key, value) for key, value in items]
    return [[list(path), value.detach().clone()] for path, value in paths]
