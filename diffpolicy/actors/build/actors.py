"""Actors, sized from an environment's specs."""

from collections.abc import Sequence

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor, TanhNormal

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.build.sizes import Sizes, read_sizes
from diffpolicy.actors.configs import NetworkConfig, ProcessConfig
from diffpolicy.actors.keys import ActorKeys
from diffpolicy.actors.squashing import ActionSquash
from diffpolicy.networks import RunningNorm, ScoreNetwork, StepEmbedding
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
    """A :class:`DenoisingActor` for an environment, behind an encoder where it observes images.

    Several agents that share one policy are supported where actions have the shape
    ``[*agents, A]`` and observations ``[*agents, S]``::

        build_denoising_actor(
            env,
            observation_keys=[("agents", "observation")],
            keys=ActorKeys(action=("agents", "action"), latents=("agents", "latents")),
        )

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        denoising_steps: number of denoising steps ``N``.
        process: options of the denoising process.
        network: network sizes.
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes; ``keys.action`` says which of
            the environment's actions it is for.
        normalizer: observation statistics to use; None builds them if the network asks for them.
        return_chain: whether acting writes the chain, as on-policy losses need.
        deterministic_step: see :class:`DenoisingActor`.
        noise_key: see :class:`DenoisingActor`.
        device: where to put the parameters.

    Raises:
        ValueError: for a discrete or unbounded action spec, or an observation key that is unknown,
            not a vector, or the name of another entry.
    """
    network = network or NetworkConfig()
    sizes = read_sizes(env, observation_keys, network, keys or ActorKeys(), normalizer)
    actor = make_denoising_actor(
        sizes,
        denoising_steps,
        process or ProcessConfig(),
        network,
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
            activation=network.score_activation,
            initialization=network.score_initialization,
        ),
        latent_scale=process.prior_std if network.scale_latent else 1.0,
        activation=network.score_activation,
        initialization=network.score_initialization,
    )
    actor = DenoisingActor(
        DenoisingProcess(sizes.action_dim, denoising_steps, **vars(process)),
        score_network,
        ActionSquash(*sizes.bounds),
        in_keys=sizes.actor_keys,
        keys=sizes.keys,
        return_chain=return_chain,
        deterministic_step=deterministic_step,
        noise_key=noise_key,
    )
    return sizes.behind_encoder(actor)


def make_gaussian_actor(
    sizes: Sizes,
    network: nn.Module,
    device: torch.device | str | None,
    *,
    return_log_prob: bool,
) -> ProbabilisticActor:
    """TorchRL's TanhNormal actor on a network that maps ``[*B, S]`` to ``loc`` and ``scale``."""
    module = TensorDictModule(
        sizes.concatenated(network, acts=True),
        in_keys=sizes.observation_keys,
        out_keys=["loc", "scale"],
    )
    low, high = (bound.to(device) for bound in sizes.bounds)
    return ProbabilisticActor(
        module.to(device),
        in_keys=["loc", "scale"],
        out_keys=[sizes.keys.action],
        spec=sizes.action_spec.to(device),
        distribution_class=TanhNormal,
        distribution_kwargs={"low": low, "high": high, "tanh_loc": False},
        return_log_prob=return_log_prob,
    )


def orthogonal_init(net: nn.Sequential, last_gain: float) -> None:
    """Orthogonal weights for tanh networks, the last layer with its own gain, and zero biases."""
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in layers:
        gain = last_gain if layer is layers[-1] else nn.init.calculate_gain("tanh")
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
