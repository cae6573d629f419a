"""Networks of the methods that train on rollouts: DiffPPO, DiffWPO, Gaussian PPO and WPO."""

from collections.abc import Sequence

import torch
from tensordict import NestedKey
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import ValueOperator

from diffpolicy.actors.build.actors import make_actor, orthogonal_init
from diffpolicy.actors.build.critics import (
    check_no_value_function,
    make_denoising_critic,
    make_denoising_value,
)
from diffpolicy.actors.build.off_policy import build_diffsac_networks
from diffpolicy.actors.build.recipe import ActorRecipe
from diffpolicy.actors.build.sizes import ActorCritic, read_sizes
from diffpolicy.actors.configs import CriticConfig, NetworkConfig, ProcessConfig
from diffpolicy.actors.keys import ActorKeys, ReturnedChain
from diffpolicy.networks import mlp

_DIFFWPO_PROCESS = ProcessConfig(step_size_per_step=True, learn_friction=False)
_WPO_CRITIC = CriticConfig(hidden=(64, 64), normalization=None, atoms=None)


def build_ppo_networks(
    env: EnvBase,
    *,
    denoising_steps: int = 4,
    process: ProcessConfig | None = None,
    network: NetworkConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    return_chain: ReturnedChain = True,
    noise_key: NestedKey | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """Actor (with chains) and value function ``V(s, x_n, n)`` for DiffPPO.

    Arguments and errors are those of :func:`build_denoising_actor`; rollouts of an actor with
    ``return_chain="latents"`` need :meth:`DenoisingMDP.with_kernels`.
    """
    process, network = process or ProcessConfig(), network or NetworkConfig()
    sizes = read_sizes(env, observation_keys, network, keys or ActorKeys())
    recipe = ActorRecipe("denoising", network, denoising_steps, process)
    actor = make_actor(recipe, sizes, device, return_chain=return_chain, noise_key=noise_key)
    critic = make_denoising_value(sizes, denoising_steps, process, network)
    return ActorCritic(actor, critic.to(device), sizes.statistics)


def build_gaussian_ppo_networks(
    env: EnvBase,
    *,
    network: NetworkConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    action_key: NestedKey = "action",
    device: torch.device | str | None = None,
) -> ActorCritic:
    """The Gaussian baseline: TorchRL's TanhNormal actor and a value function ``V(s)``.

    The scale does not depend on the state and the last layer starts small, as in TorchRL's own
    PPO recipe for MuJoCo. Arguments and errors are those of :func:`build_denoising_actor`, with
    ``action_key`` in place of ``keys.action``.
    """
    network = network or NetworkConfig()
    if network.value_support is not None:
        raise ValueError(
            f"value_support={network.value_support} is for denoising chains only: TorchRL's "
            "ClipPPOLoss trains a scalar critic."
        )
    sizes = read_sizes(env, observation_keys, network, ActorKeys(action=action_key))
    actor = make_actor(ActorRecipe("gaussian_ppo", network), sizes, device, return_log_prob=True)
    value = mlp(sizes.observation_dim, network.critic_hidden, 1, nn.Tanh)
    orthogonal_init(value, 1.0)
    critic = ValueOperator(
        sizes.concatenated(sizes.standardised(value)), in_keys=list(observation_keys)
    )
    return ActorCritic(actor, critic.to(device), sizes.statistics)


def build_diffwpo_networks(
    env: EnvBase,
    *,
    denoising_steps: int = 4,
    process: ProcessConfig | None = None,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    return_chain: ReturnedChain = True,
    noise_key: NestedKey | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """Actor (with chains) and Q ensemble ``Q_j(s, x_{n+1}, n)`` for DiffWPO.

    As :func:`build_diffsac_networks`; the defaults are for on-policy training: a step size for
    every denoising step, fixed friction, and observation statistics.
    """
    return build_diffsac_networks(
        env,
        denoising_steps=denoising_steps,
        process=process or _DIFFWPO_PROCESS,
        network=network or NetworkConfig(),
        critic=critic or _WPO_CRITIC,
        observation_keys=observation_keys,
        keys=keys,
        return_chain=return_chain,
        noise_key=noise_key,
        device=device,
    )


def build_gaussian_wpo_networks(
    env: EnvBase,
    *,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    initial_std: float = 1.0,
    noise_key: NestedKey | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """The Gaussian baseline of DiffWPO: a :class:`GaussianChainActor` and its Q ensemble.

    The policy network is that of :func:`build_gaussian_ppo_networks`, the critic that of
    :func:`build_diffwpo_networks` for one denoising step.

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        network: ``actor_hidden`` and ``normalize_observations``, and ``step_embedding`` and
            ``step_activation`` for the critic; nothing else is used.
        critic: options of the Q ensemble; None has two scalar ones of two layers of 64.
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes.
        initial_std: standard deviation before squashing at the start.
        noise_key: see :class:`GaussianChainActor`.
        device: where to put the parameters.

    Raises:
        ValueError: as :func:`build_diffwpo_networks`.
    """
    network, critic = network or NetworkConfig(), critic or _WPO_CRITIC
    check_no_value_function(network)
    sizes = read_sizes(env, observation_keys, network, keys or ActorKeys())
    actor = make_actor(
        ActorRecipe("gaussian_chain", network),
        sizes,
        device,
        initial_std=initial_std,
        return_chain=True,
        noise_key=noise_key,
    )
    q_module = make_denoising_critic(sizes, 1, critic, network, latent_scale=1.0)
    return ActorCritic(actor, q_module.to(device), sizes.statistics)
