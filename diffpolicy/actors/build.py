"""Builders of actors and PPO value functions, sized from an environment's specs."""

from collections.abc import Sequence

import torch
from tensordict import NestedKey
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.configs import NetworkConfig, ProcessConfig
from diffpolicy.actors.keys import ActorKeys
from diffpolicy.actors.sizes import ActorCritic, Concatenated, Sizes, read_sizes
from diffpolicy.actors.squashing import ActionSquash
from diffpolicy.networks import (
    DenoisingValueNetwork,
    RunningNorm,
    ScoreNetwork,
    StepEmbedding,
    mlp,
)
from diffpolicy.sde import DenoisingProcess, DeterministicStep


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
    deterministic_step: DeterministicStep = "mean",
    noise_key: NestedKey | None = None,
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
        noise_key: see :class:`DenoisingActor`.
        device: where to put the parameters.

    Raises:
        ValueError: for a discrete or unbounded action spec or an unknown observation key.
    """
    process = process or ProcessConfig()
    network = network or NetworkConfig()
    keys = keys or ActorKeys()
    sizes = read_sizes(
        env, observation_keys, network, action_key=keys.action, normalizer=normalizer
    )
    actor = make_denoising_actor(
        sizes,
        denoising_steps,
        process,
        network,
        keys,
        return_chain=return_chain,
        deterministic_step=deterministic_step,
        noise_key=noise_key,
    )
    return actor.to(device)


def make_denoising_actor(
    sizes: Sizes,
    denoising_steps: int,
    process: ProcessConfig,
    network: NetworkConfig,
    keys: ActorKeys,
    *,
    return_chain: bool = False,
    deterministic_step: DeterministicStep = "mean",
    noise_key: NestedKey | None = None,
) -> DenoisingActor:
    """The actor for sizes that are already known; see :func:`build_denoising_actor`."""
    score_network = ScoreNetwork(
        sizes.action_dim,
        sizes.observation_dim,
        denoising_steps,
        hidden_sizes=network.actor_hidden,
        normalizer=sizes.normalizer,
        embedding=StepEmbedding(
            denoising_steps,
            *network.step_embedding,
            activation=network.activation(),
            initialization=network.score_initialization,
        ),
        latent_scale=process.prior_std if network.scale_latent else 1.0,
        activation=network.activation(),
        initialization=network.score_initialization,
    )
    return DenoisingActor(
        DenoisingProcess(sizes.action_dim, denoising_steps, **vars(process)),
        score_network,
        ActionSquash.from_spec(sizes.action_spec.cpu()),
        in_keys=sizes.observation_keys,
        keys=keys,
        return_chain=return_chain,
        deterministic_step=deterministic_step,
        noise_key=noise_key,
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

    Arguments and errors are those of :func:`build_denoising_actor`.
    """
    process = process or ProcessConfig()
    network = network or NetworkConfig()
    keys = keys or ActorKeys()
    sizes = read_sizes(env, observation_keys, network, action_key=keys.action)
    actor = make_denoising_actor(sizes, denoising_steps, process, network, keys, return_chain=True)
    value_network = Concatenated(
        DenoisingValueNetwork(
            sizes.observation_dim,
            sizes.action_dim,
            denoising_steps,
            hidden_sizes=network.critic_hidden,
            normalizer=sizes.normalizer,
            support=network.support(),
            embedding=StepEmbedding(denoising_steps, *network.step_embedding),
            latent_scale=process.prior_std if network.scale_latent else 1.0,
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
    sizes = read_sizes(env, observation_keys, network)
    spec = sizes.action_spec.to(device)
    policy = mlp(sizes.observation_dim, network.actor_hidden, sizes.action_dim, nn.Tanh)
    value = mlp(sizes.observation_dim, network.critic_hidden, 1, nn.Tanh)
    for net, gain in ((policy, 0.01), (value, 1.0)):
        orthogonal_init(net, gain)
    body: list[nn.Module] = [] if sizes.normalizer is None else [sizes.normalizer]
    module = TensorDictModule(
        Concatenated(
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
        Concatenated(nn.Sequential(*body, value), len(observation_keys)),
        in_keys=list(observation_keys),
    )
    return ActorCritic(actor, critic.to(device), sizes.normalizer)


def _value_keys(network: NetworkConfig) -> list[NestedKey]:
    value: list[NestedKey] = ["state_value"]
    return value if network.value_support is None else [*value, "state_value_logits"]


def orthogonal_init(net: nn.Sequential, last_gain: float) -> None:
    """Orthogonal weights for tanh networks, the last layer with its own gain, and zero biases."""
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in layers:
        gain = last_gain if layer is layers[-1] else nn.init.calculate_gain("tanh")
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
