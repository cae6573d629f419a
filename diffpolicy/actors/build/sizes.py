"""Sizes of an environment, read from its specs once for all networks of a builder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar, cast

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import TensorSpec

from diffpolicy.actors.configs import NetworkConfig
from diffpolicy.actors.encoded import EncodedActor
from diffpolicy.actors.keys import ENCODED_KEY, RESERVED_KEYS, ActorKeys, check_collisions
from diffpolicy.actors.squashing import EnvSpecs, action_bounds, env_action_spec
from diffpolicy.networks import ObservationEncoder, RunningNorm
from diffpolicy.networks.encoders import is_image

ActorT = TypeVar("ActorT", bound=nn.Module)


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
        observation_dim: size ``S`` of what networks read: their concatenation, or the features of
            the encoders.
        action_spec: the spec of one action ``[A]``, or ``[*agents, A]`` of several agents.
        keys: names of the entries that the actor reads and writes.
        statistics: those of the vectors in observations, for all networks, or None.
        encoders: what stands before the networks where there are images.
    """

    observation_keys: list[NestedKey]
    observation_dim: int
    action_spec: TensorSpec
    keys: ActorKeys
    statistics: RunningNorm | None
    encoders: "Encoders | None" = None

    @property
    def action_dim(self) -> int:
        """Number of action dimensions ``A``."""
        return self.action_spec.shape[-1]

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the action ``[A]``, on the CPU."""
        return action_bounds(self.action_spec.cpu())

    @property
    def normalizer(self) -> RunningNorm | None:
        """What standardises the input of networks; encoders do it themselves."""
        return self.statistics if self.encoders is None else None

    @property
    def actor_keys(self) -> list[NestedKey]:
        """What an actor behind encoders reads, if there are any."""
        return self.observation_keys if self.encoders is None else [ENCODED_KEY]

    def concatenated(self, network: nn.Module, *, acts: bool = False) -> nn.Module:
        """``network`` with one input for every observation entry, behind an encoder if needed.

        Args:
            network: reads ``[*B, S]``.
            acts: whether it is the policy's.
        """
        if self.encoders is None:
            return Concatenated(network, len(self.observation_keys))
        encoder = self.encoders.one()
        return Encoded(network, encoder, detach=acts and self.encoders.shared is not None)

    def behind_encoder(self, actor: ActorT) -> ActorT:
        """The actor, or one with the same members that encodes first."""
        if self.encoders is None:
            return actor
        encoder = TensorDictModule(self.encoders.one(), self.observation_keys, [ENCODED_KEY])
        sequence = TensorDictSequential(encoder, actor)
        detach = self.encoders.shared is not None
        return cast(ActorT, EncodedActor(sequence, detach=detach))

    def standardised(self, *layers: nn.Module) -> nn.Sequential:
        """``layers`` behind the observation statistics, if there are any."""
        first = [] if self.normalizer is None else [self.normalizer]
        return nn.Sequential(*first, *layers)


@dataclass(frozen=True)
class Encoders:
    """Encoders for the networks of a method.

    Attributes:
        make: builds one.
        shared: the one for all networks; None if each gets its own.
    """

    make: Callable[[], ObservationEncoder]
    shared: ObservationEncoder | None

    def one(self) -> ObservationEncoder:
        """The encoder of one more network."""
        return self.make() if self.shared is None else self.shared


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
            key that is unknown, not a vector (for every agent), an image without an encoder, or
            the name of something else.
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
    # Entries of several agents have three dimensions, too.
    images = len(action_spec.shape) == 1 and any(is_image(spec[k].shape) for k in observation_keys)
    encodes = images and network.encoder is not None
    for key in observation_keys:
        if not (encodes and is_image(spec[key].shape)):
            _check_layout(key, spec[key].shape, action_spec.shape)
    vectors = [spec[key] for key in observation_keys if not (encodes and is_image(spec[key].shape))]
    width = sum(vector.shape[-1] for vector in vectors)
    if normalizer is None and network.normalize_observations and width:
        normalizer = RunningNorm(width)
    found = list(observation_keys)
    if not encodes:
        return Sizes(found, width, action_spec, keys, normalizer)
    assert network.encoder is not None
    entries = [(tuple(spec[key].shape), spec[key].dtype) for key in found]
    make = partial(ObservationEncoder, entries, network.encoder, normalizer)
    first = make()
    encoders = Encoders(make, first if network.share_encoder else None)
    return Sizes(found, first.features, action_spec, keys, normalizer, encoders)


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
        "are supported, flatten it first (torchrl.envs.FlattenObservation); images need "
        "NetworkConfig(encoder=...)."
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


class Encoded(nn.Module):
    """Feeds the first positional inputs, one for each observation entry, through an encoder.

    Args:
        network: reads the features first.
        encoder: makes them.
        detach: whether the gradient ends at the features.
    """

    def __init__(self, network: nn.Module, encoder: ObservationEncoder, *, detach: bool) -> None:
        super().__init__()
        self.network = network
        self.encoder = encoder
        self.detach = detach

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Output of the network."""
        count = len(self.encoder.shapes)
        features = self.encoder(*inputs[:count])
        return self.network(features.detach() if self.detach else features, *inputs[count:])
