"""What builders read from an environment's specs, and what they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs import EnvBase

from diffpolicy.actors.configs import NetworkConfig
from diffpolicy.actors.squashing import env_action_spec
from diffpolicy.networks import RunningNorm


class ActorCritic(NamedTuple):
    """An actor, its critic or critics, and the observation statistics they share (or None)."""

    actor: TensorDictModule
    critic: TensorDictModule | nn.ModuleList
    normalizer: RunningNorm | None


@dataclass(frozen=True)
class Sizes:
    """Sizes of an environment's observations and actions.

    Attributes:
        observation_keys: observation entries, to be concatenated.
        observation_dim: size ``S`` of their concatenation.
        action_spec: the spec of one action ``[A]``.
        normalizer: observation statistics for all networks, or None.
    """

    observation_keys: list[NestedKey]
    observation_dim: int
    action_spec: TensorSpec
    normalizer: RunningNorm | None

    @property
    def action_dim(self) -> int:
        """Number of action dimensions ``A``."""
        return self.action_spec.shape[-1]


def read_sizes(
    env: EnvBase,
    observation_keys: Sequence[NestedKey],
    network: NetworkConfig,
    *,
    action_key: NestedKey = "action",
    normalizer: RunningNorm | None = None,
) -> Sizes:
    """Sizes from the specs, and statistics if ``network`` wants them and none are given.

    Raises:
        ValueError: for a discrete or unbounded action spec, or an observation key that is unknown
            or not a vector.
    """
    action_spec = env_action_spec(env, action_key)
    spec = env.observation_spec_unbatched
    width = 0
    for key in observation_keys:
        if key not in spec.keys(True, True):
            raise ValueError(
                f"observation_keys has {key!r}, but the environment's observations are "
                f"{sorted(map(str, spec.keys(True, True)))}."
            )
        if len(spec[key].shape) != 1:
            raise ValueError(
                f"observation_keys has {key!r} of shape {tuple(spec[key].shape)}; only vectors "
                "are supported, flatten it first (torchrl.envs.FlattenObservation)."
            )
        width += spec[key].shape[0]
    if normalizer is None and network.normalize_observations:
        normalizer = RunningNorm(width)
    return Sizes(list(observation_keys), width, action_spec, normalizer)


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
