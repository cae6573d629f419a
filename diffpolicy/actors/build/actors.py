"""Actors, sized from an environment's specs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.build.recipe import ActorKind, ActorRecipe, chain_recipe
from diffpolicy.actors.build.sizes import Sizes, read_sizes
from diffpolicy.actors.configs import AnyProcessConfig, NetworkConfig, ProcessConfig
from diffpolicy.actors.gaussian import GaussianChainActor
from diffpolicy.actors.keys import ActorKeys, ReturnedChain
from diffpolicy.actors.squashing import ActionClip, ActionMap, ActionSquash
from diffpolicy.networks import IntervalEmbedding, RunningNorm, ScoreNetwork, StepEmbedding, mlp
from diffpolicy.sde import (
    DenoisingProcess,
    DeterministicStep,
    MeanFlowProcess,
    Process,
    RectifiedFlowProcess,
    VariancePreservingProcess,
)


def build_denoising_actor(
    env: EnvBase,
    *,
    denoising_steps: int = 4,
    process: AnyProcessConfig | None = None,
    network: NetworkConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    normalizer: RunningNorm | None = None,
    return_chain: ReturnedChain = False,
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
        process: options of the process, whose type says which one it is.
        network: network sizes.
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes; ``keys.action`` says which of
            the environment's actions it is for.
        normalizer: observation statistics to use; None builds them if the network asks for them.
        return_chain: whether acting writes the chain, as on-policy losses need, or its
            ``"latents"`` alone, which DiffSAC needs.
        deterministic_step: see :class:`DenoisingActor`.
        noise_key: see :class:`DenoisingActor`.
        device: where to put the parameters.

    Raises:
        ValueError: for a discrete or unbounded action spec, or an observation key that is unknown,
            not a vector, or the name of another entry.
    """
    network = network or NetworkConfig()
    sizes = read_sizes(env, observation_keys, network, keys or ActorKeys(), normalizer)
    recipe = chain_recipe(network, denoising_steps, process or ProcessConfig(), deterministic_step)
    return make_actor(recipe, sizes, device, return_chain=return_chain, noise_key=noise_key)


def make_actor(
    recipe: ActorRecipe, sizes: Sizes, device: torch.device | str | None = None, **options: Any
) -> Any:
    """The actor of a recipe, with fresh parameters: the one place where actors are built.

    Args:
        recipe: how; it becomes the attribute ``recipe`` of the actor.
        sizes: of observations and actions.
        device: where to put the parameters.
        **options: what only matters in training: ``return_chain`` and ``noise_key`` of chains,
            ``initial_std`` of a :class:`GaussianChainActor`, ``return_log_prob`` of PPO's Gaussian.
    """
    actor = _MAKERS[recipe.kind](recipe, sizes, device, **options)
    actor.recipe = recipe
    return actor


def _denoising(
    recipe: ActorRecipe,
    sizes: Sizes,
    device: torch.device | str | None,
    *,
    return_chain: ReturnedChain = False,
    noise_key: NestedKey | None = None,
) -> DenoisingActor:
    process, network, denoising_steps = recipe.process, recipe.network, recipe.denoising_steps
    assert process is not None
    make_process, make_squash = _PROCESSES[recipe.kind]
    score_network = ScoreNetwork(
        sizes.action_dim,
        sizes.observation_dim,
        denoising_steps,
        hidden_sizes=network.actor_hidden,
        normalizer=sizes.normalizer,
        embedding=_embedding(recipe),
        latent_scale=process.prior_std if network.scale_latent else 1.0,
        activation=network.score_activation,
        initialization=network.score_initialization,
    )
    actor = DenoisingActor(
        make_process(sizes.action_dim, denoising_steps, **vars(process)),
        score_network,
        make_squash(*sizes.bounds),
        in_keys=sizes.actor_keys,
        keys=sizes.keys,
        return_chain=return_chain,
        deterministic_step=recipe.deterministic_step,
        noise_key=noise_key,
    )
    return sizes.behind_encoder(actor).to(device)


def _embedding(recipe: ActorRecipe) -> StepEmbedding | IntervalEmbedding:
    """What the network is told about a step: its number, or when it begins and ends."""
    network, sizes = recipe.network, recipe.network.step_embedding
    make: Callable[..., StepEmbedding | IntervalEmbedding] = (
        IntervalEmbedding
        if recipe.kind == "mean_flow"
        else partial(StepEmbedding, recipe.denoising_steps)
    )
    return make(
        *sizes, activation=network.score_activation, initialization=network.score_initialization
    )


def _gaussian_chain(
    recipe: ActorRecipe,
    sizes: Sizes,
    device: torch.device | str | None,
    *,
    initial_std: float = 1.0,
    return_chain: ReturnedChain = False,
    noise_key: NestedKey | None = None,
) -> GaussianChainActor:
    actor = GaussianChainActor(
        sizes.standardised(_small_mean(recipe, sizes)),
        ActionSquash(*sizes.bounds),
        in_keys=sizes.actor_keys,
        keys=sizes.keys,
        initial_std=initial_std,
        return_chain=return_chain,
        noise_key=noise_key,
    )
    return sizes.behind_encoder(actor).to(device)


def _gaussian_ppo(
    recipe: ActorRecipe,
    sizes: Sizes,
    device: torch.device | str | None,
    *,
    return_log_prob: bool = False,
) -> ProbabilisticActor:
    scale = AddStateIndependentNormalScale(sizes.action_dim)
    network = sizes.standardised(_small_mean(recipe, sizes), scale)
    return _tanh_normal(sizes, network, device, return_log_prob=return_log_prob)


def _gaussian_sac(
    recipe: ActorRecipe, sizes: Sizes, device: torch.device | str | None
) -> ProbabilisticActor:
    hidden = recipe.network.actor_hidden
    policy = mlp(sizes.observation_dim, hidden, 2 * sizes.action_dim, nn.ReLU)
    network = nn.Sequential(policy, NormalParamExtractor())
    return _tanh_normal(sizes, network, device, return_log_prob=False)


#: The process of each kind of chain, and what maps its last latent into the bounds.
_PROCESSES: dict[ActorKind, tuple[Callable[..., Process], type[ActionMap]]] = {
    "denoising": (DenoisingProcess, ActionSquash),
    "diffusion": (VariancePreservingProcess, ActionClip),
    "flow": (RectifiedFlowProcess, ActionClip),
    "mean_flow": (MeanFlowProcess, ActionClip),
}
_MAKERS: dict[ActorKind, Callable[..., Any]] = {
    "denoising": _denoising,
    "diffusion": _denoising,
    "flow": _denoising,
    "mean_flow": _denoising,
    "gaussian_chain": _gaussian_chain,
    "gaussian_ppo": _gaussian_ppo,
    "gaussian_sac": _gaussian_sac,
}


def _small_mean(recipe: ActorRecipe, sizes: Sizes) -> nn.Sequential:
    """A tanh network whose last layer starts small, as in TorchRL's PPO recipe for MuJoCo."""
    policy = mlp(sizes.observation_dim, recipe.network.actor_hidden, sizes.action_dim, nn.Tanh)
    orthogonal_init(policy, 0.01)
    return policy


def _tanh_normal(
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
