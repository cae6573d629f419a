"""Sizes of an environment, read from its specs once for all networks of a builder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import TensorSpec

from diffpolicy.actors.configs import NetworkConfig
from diffpolicy.actors.keys import RESERVED_KEYS, ActorKeys, check_collisions
from diffpolicy.actors.squashing import EnvSpecs, action_bounds, env_action_spec
from diffpolicy.networks import RunningNorm


class ActorCritic(NamedTuple):
    """An actor, its critic or critics, and the observation statistics they share (or None)."""

    actor: TensorDictModule
    critic: TensorDictModule | nn.ModuleList
    normalizer: RunningNorm | None


@dataclass(frozen=True)
class Sizes:
    """Sizes and names of an environment's observations and actions.

    Attributes:
        observation_keys: observation entries, to be concatenated.
        observation_dim: size ``S`` of their concatenation.
        action_spec: the spec of one action ``[A]``, or ``[*agents, A]`` of several agents.
        keys: names of the entries that the actor reads and writes.
        normalizer: observation statistics for all networks, or None.
    """

    observation_keys: list[NestedKey]
    observation_dim: int
    action_spec: TensorSpec
    keys: ActorKeys
    normalizer: RunningNorm | None

    @property
    def action_dim(self) -> int:
        """Number of action dimensions ``A``."""
        return self.action_spec.shape[-1]

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the action ``[A]``, on the CPU."""
        return action_bounds(self.action_spec.cpu())

    def concatenated(self, network: nn.Module) -> nn.Module:
        """``network`` with one input for every observation entry."""
        return Concatenated(network, len(self.observation_keys))

    def standardised(self, *layers: nn.Module) -> nn.Sequential:
        """``layers`` behind the observation statistics, if there are any."""
        first = [] if self.normalizer is None else [self.normalizer]
        return nn.Sequential(*first, *layers)


def read_sizes(
    env: EnvSpecs,
    observation_keys: Sequence[NestedKey],
    network: NetworkConfig,
    keys: ActorKeys,
    normalizer: RunningNorm | None = None,
) -> Sizes:
    """Sizes from the specs, and statistics if ``network`` wants them and none are given.

    Raises:
        ValueError: for an action spec that is discrete, unbounded or not there, or an observation
            key that is unknown, not a vector (for every agent), or the name of something else.
    """
    action_spec = env_action_spec(env, keys.action)
    check_collisions("observation_keys", observation_keys, [*keys.all, *sorted(RESERVED_KEYS)])
    spec = env.observation_spec_unbatched
    for key in observation_keys:
        if key not in spec.keys(True, True):
            raise ValueError(
                f"observation_keys has {key!r}, but the environment's observations are "
                f"{sorted(map(str, spec.keys(True, True)))}."
            )
        _check_layout(key, spec[key].shape, action_spec.shape)
    width = sum(spec[key].shape[-1] for key in observation_keys)
    if normalizer is None and network.normalize_observations:
        normalizer = RunningNorm(width)
    return Sizes(list(observation_keys), width, action_spec, keys, normalizer)


def _check_layout(key: NestedKey, observation: torch.Size, action: torch.Size) -> None:
    """Refuse observations that are not one vector for each action."""
    if len(observation) > 0 and observation[:-1] == action[:-1]:
        return
    if len(action) > 1:
        raise ValueError(
            "action_spec must have shape [A], or [*agents, A] with observations [*agents, S], got "
            f"{tuple(action)} with {key!r} of shape {tuple(observation)}."
        )
    raise ValueError(
        f"observation_keys has {key!r} of shape {tuple(observation)}; only vectors "
        "are supported, flatten it first (torchrl.envs.FlattenObservation)."
    )


class Concatenated(nn.Module):
    """Feeds the first ``count`` positional inputs to a network as one concatenated tensor."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network = network
        self.count = count

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Output of the network."""
        observation = torch.cat(inputs[: self.count], -1) if self.count > 1 else inputs[0]
        return self.network(observation, *inputs[self.count :])
