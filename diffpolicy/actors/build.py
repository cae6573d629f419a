"""Builders that size actors and critics from an environment's specs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from tensordict import NestedKey
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.data import TensorSpec
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.keys import ActorKeys
from diffpolicy.actors.squashing import ActionSquash, env_action_spec
from diffpolicy.networks import DenoisingValueNetwork, HLGauss, RunningNorm, ScoreNetwork, mlp
from diffpolicy.sde import DenoisingProcess
from diffpolicy.sde.process import NoisingStep


@dataclass(frozen=True)
class ProcessConfig:
    """Options of :class:`~diffpolicy.sde.DenoisingProcess`, which documents them."""

    prior_std: float = 0.4
    schedule: str = "linear"
    step_size: float = 0.08
    learn_step_size: bool = True
    step_size_per_step: bool = False
    friction: float = 1.0
    learn_friction: bool = True
    noising_step: NoisingStep = "next"


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of actor and critic networks.

    Attributes:
        actor_hidden: widths of the score (or policy) network.
        critic_hidden: widths of the critic.
        normalize_observations: standardise observations with running statistics that actor
            and critic share.
        value_support: ``(minimum, maximum, bins)`` of an HL-Gauss critic; None is a scalar head.
    """

    actor_hidden: tuple[int, ...] = (64, 64)
    critic_hidden: tuple[int, ...] = (64, 64)
    normalize_observations: bool = True
    value_support: tuple[float, float, int] | None = None

    def support(self) -> HLGauss | None:
        """The HL-Gauss head, or None for a scalar critic."""
        return None if self.value_support is None else HLGauss(*self.value_support)


class ActorCritic(NamedTuple):
    """An actor, its critic, and the observation statistics that they share (or None)."""

    actor: TensorDictModule
    critic: TensorDictModule
    normalizer: RunningNorm | None


@dataclass(frozen=True)
class _Sizes:
    observation_keys: list[NestedKey]
    observation_dim: int
    action_spec: TensorSpec
    normalizer: RunningNorm | None

    @property
    def action_dim(self) -> int:
        return self.action_spec.shape[-1]


def _sizes(
    env: EnvBase,
    observation_keys: Sequence[NestedKey],
    network: NetworkConfig,
    *,
    action_key: NestedKey = "action",
    normalizer: RunningNorm | None = None,
) -> _Sizes:
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
    return _Sizes(list(observation_keys), width, action_spec, normalizer)


def build_denoising_actor(
    env: EnvBase,
    *,
    denoising_steps: int = 4,
    process: ProcessConfig | None = None,
    network: NetworkConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    normalizer: RunningNorm | None = None,
    return_chain: bool = False,
    deterministic_step: Literal["flow", "mean"] = "flow",
    device: torch.device | str | None = None,
) -> DenoisingActor:
    """A :class:`DenoisingActor` for an environment.

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        denoising_steps: number of denoising steps ``N``.
        process: options of the denoising process.
        network: network sizes.
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes.
        normalizer: observation statistics to use; None builds them if the network asks for them.
        return_chain: whether acting writes the chain, as on-policy losses need.
        deterministic_step: see :class:`DenoisingActor`.
        device: where to put the parameters.

    Raises:
        ValueError: for a discrete or unbounded action spec or an unknown observation key.
    """
    process = process or ProcessConfig()
    network = network or NetworkConfig()
    keys = keys or ActorKeys()
    sizes = _sizes(env, observation_keys, network, action_key=keys.action, normalizer=normalizer)
    actor = _denoising_actor(
        sizes, denoising_steps, process, network, keys, return_chain, deterministic_step
    )
    return actor.to(device)


def _denoising_actor(
    sizes: _Sizes,
    denoising_steps: int,
    process: ProcessConfig,
    network: NetworkConfig,
    keys: ActorKeys,
    return_chain: bool,
    deterministic_step: Literal["flow", "mean"],
) -> DenoisingActor:
    score_network = ScoreNetwork(
        sizes.action_dim,
        sizes.observation_dim,
        denoising_steps,
        hidden_sizes=network.actor_hidden,
        normalizer=sizes.normalizer,
        latent_scale=process.prior_std,
    )
    return DenoisingActor(
        DenoisingProcess(sizes.action_dim, denoising_steps, **vars(process)),
        score_network,
        ActionSquash.from_spec(sizes.action_spec.cpu()),
        in_keys=sizes.observation_keys,
        keys=keys,
        return_chain=return_chain,
        deterministic_step=deterministic_step,
    )


def build_ppo_networks(
    env: EnvBase,
    *,
    denoising_steps: int = 4,
    process: ProcessConfig | None = None,
    network: NetworkConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """Actor (with chains) and value function ``V(s, x_n, n)`` for DiffPPO.

    The actor's deterministic mode follows the kernel means: at the small temperatures of DiffPPO
    nothing ties the score to the noising kernel, which the probability flow presumes.
    Arguments and errors are those of :func:`build_denoising_actor`.
    """
    process = process or ProcessConfig()
    network = network or NetworkConfig()
    keys = keys or ActorKeys()
    sizes = _sizes(env, observation_keys, network, action_key=keys.action)
    actor = _denoising_actor(
        sizes, denoising_steps, process, network, keys, return_chain=True, deterministic_step="mean"
    )
    value_network = _Concatenated(
        DenoisingValueNetwork(
            sizes.observation_dim,
            sizes.action_dim,
            denoising_steps,
            hidden_sizes=network.critic_hidden,
            normalizer=sizes.normalizer,
            support=network.support(),
            latent_scale=process.prior_std,
        ),
        len(observation_keys),
    )
    critic = TensorDictModule(
        value_network,
        in_keys=[*observation_keys, keys.latent, keys.step],
        out_keys=_value_keys(network),
    )
    return ActorCritic(actor.to(device), critic.to(device), sizes.normalizer)


def build_gaussian_ppo_networks(
    env: EnvBase,
    *,
    network: NetworkConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    device: torch.device | str | None = None,
) -> ActorCritic:
    """The Gaussian baseline: TorchRL's TanhNormal actor and a value function ``V(s)``.

    The scale does not depend on the state and the last layer starts small, as in TorchRL's own
    PPO recipe for MuJoCo. Arguments and errors are those of :func:`build_denoising_actor`.
    """
    network = network or NetworkConfig()
    if network.value_support is not None:
        raise ValueError(
            f"value_support={network.value_support} is for denoising chains only: TorchRL's "
            "ClipPPOLoss trains a scalar critic."
        )
    sizes = _sizes(env, observation_keys, network)
    spec = sizes.action_spec.to(device)
    policy = mlp(sizes.observation_dim, network.actor_hidden, sizes.action_dim, nn.Tanh)
    value = mlp(sizes.observation_dim, network.critic_hidden, 1, nn.Tanh)
    for net, gain in ((policy, 0.01), (value, 1.0)):
        _orthogonal_init(net, gain)
    body: list[nn.Module] = [] if sizes.normalizer is None else [sizes.normalizer]
    module = TensorDictModule(
        _Concatenated(
            nn.Sequential(*body, policy, AddStateIndependentNormalScale(sizes.action_dim)),
            len(observation_keys),
        ),
        in_keys=list(observation_keys),
        out_keys=["loc", "scale"],
    )
    actor = ProbabilisticActor(
        module.to(device),
        in_keys=["loc", "scale"],
        spec=spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": spec.space.low, "high": spec.space.high, "tanh_loc": False},
        return_log_prob=True,
    )
    critic = ValueOperator(
        _Concatenated(nn.Sequential(*body, value), len(observation_keys)),
        in_keys=list(observation_keys),
    )
    return ActorCritic(actor, critic.to(device), sizes.normalizer)


class _Concatenated(nn.Module):
    """Feeds the first ``count`` positional inputs to a network as one concatenated tensor."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network = network
        self.count = count

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        observation = torch.cat(inputs[: self.count], -1) if self.count > 1 else inputs[0]
        return self.network(observation, *inputs[self.count :])


def _value_keys(network: NetworkConfig) -> list[NestedKey]:
    value: list[NestedKey] = ["state_value"]
    return value if network.value_support is None else [*value, "state_value_logits"]


def _orthogonal_init(net: nn.Sequential, last_gain: float) -> None:
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in layers:
        gain = last_gain if layer is layers[-1] else nn.init.calculate_gain("tanh")
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
