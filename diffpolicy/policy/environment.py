"""What policies are given by environments, and what they give to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import NestedKey
from torchrl.envs import EnvBase, TransformedEnv

from collectors.environments.factory import MadeEnv
from collectors.environments.simulator_env import EnvLayer, SimulatorEnv
from collectors.environments.spaces import Actions, Entry, observation_entry
from collectors.environments.torchrl_env import FramedEnv
from diffpolicy.errors import ArgumentError
from diffpolicy.policy.interface import Interface


def interface_of(env: EnvBase, keys: Sequence[NestedKey]) -> Interface:
    """The interface of a policy that was built for an environment.

    Args:
        env: from :func:`collectors.make_env`.
        keys: what the policy's network reads of it.

    Raises:
        ArgumentError: for another environment, actions of several agents, and where transforms
            that were added later change what is observed or done.
    """
    made = _made_env(env)
    if made is None:
        raise _refused(env, "must be an environment of collectors.make_env")
    inner, frames = made.unchunked, 1
    if isinstance(inner, FramedEnv):
        frames, inner = inner.frames, inner.base_env
    if isinstance(inner, SimulatorEnv):
        by_key = {entry.key: entry for entry in inner.frame_entries}
        if not by_key.keys() >= set(keys):
            raise _refused(env, "gets what the actor reads from a transform")
        observed = [by_key[key] for key in keys]
        frames, actions = max(frames, inner.frames), inner.actions
    else:
        observed = [_tensor_entry(inner, key) for key in keys]
        actions = _tensor_actions(inner)
    interface = Interface(tuple(observed), actions, frames, made.chunk, made.rescales)
    if not _matches(interface, env):
        raise _refused(env, "has transforms around it that change what is observed or done")
    return interface


def _made_env(env: EnvBase) -> MadeEnv | None:
    """What make_env has made, inside of what has been put around it since."""
    while isinstance(env, (TransformedEnv, EnvLayer)) and not isinstance(env, MadeEnv):
        env = env.base_env
    return env if isinstance(env, MadeEnv) else None


def _tensor_entry(env: EnvBase, key: NestedKey) -> Entry:
    """What a TorchRL environment writes at ``key``, as a number of float32 or uint8."""
    specs = env.observation_spec_unbatched
    if key not in specs.keys(True, True):
        raise _refused(env, "gets what the actor reads from a transform")
    shape, is_bytes = tuple(specs[key].shape), specs[key].dtype is torch.uint8
    low, high, dtype = (0, 255, np.uint8) if is_bytes else (-np.inf, np.inf, np.float32)
    path = (key,) if isinstance(key, str) else tuple(key)
    return observation_entry("the environment", path, spaces.Box(low, high, shape, dtype), ())


def _tensor_actions(env: EnvBase) -> Actions:
    spec: Any = env.full_action_spec_unbatched["action"].cpu()
    if len(spec.shape) != 1:
        raise _refused(env, "has actions of several agents")
    low, high = spec.space.low.numpy(), spec.space.high.numpy()
    return Actions.of("the environment", spaces.Box(low, high, dtype=low.dtype.type))


def _matches(interface: Interface, env: EnvBase) -> bool:
    """Whether networks of ``env``, with all that stands around it, have the sizes of these."""
    specs = env.observation_spec_unbatched
    if any(specs[e.key].shape != torch.Size(e.shape) for e in interface.entries):
        return False
    space: Any = env.full_action_spec_unbatched["action"].cpu().space
    ends = zip((space.low, space.high), interface.network_bounds, strict=True)
    return all(np.allclose(end.float().numpy(), own) for end, own in ends)


def _refused(env: EnvBase, problem: str) -> ArgumentError:
    return ArgumentError("env", type(env).__name__, f"{problem}; no file can describe that.")
