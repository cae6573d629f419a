"""Networks of the methods that train from replay."""

from collections.abc import Sequence

import torch
from tensordict import NestedKey
from torchrl.envs import EnvBase

from diffpolicy.actors.build.actors import make_actor
from diffpolicy.actors.build.critics import (
    check_no_value_function,
    make_action_critic,
    make_denoising_critic,
    make_single_critics,
)
from diffpolicy.actors.build.recipe import ActorRecipe, chain_recipe
from diffpolicy.actors.build.sizes import ActorCritic, read_sizes
from diffpolicy.actors.configs import (
    DIME_CPU,
    DIME_PROCESS,
    AnyProcessConfig,
    CriticConfig,
    DiffusionConfig,
    NetworkConfig,
    ProcessConfig,
)
from diffpolicy.actors.keys import ActorKeys, ReturnedChain
from diffpolicy.errors import ArgumentError

_DIFFSAC_NETWORK = NetworkConfig(actor_hidden=(128, 128), normalize_observations=False)
_DIFFSAC_CRITIC = CriticConfig(normalization="layer", atoms=None)
_SAC_NETWORK = NetworkConfig(actor_hidden=(256, 256), normalize_observations=False)
_SAC_CRITIC = CriticConfig(normalization=None, atoms=None)


def build_dime_networks(
    env: EnvBase,
    *,
    denoising_steps: int = 8,
    process: ProcessConfig | None = None,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    noise_key: NestedKey | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """Actor and Q ensemble ``Q_j(s, a)`` for DIME (arXiv 2502.02316).

    The defaults are those of :data:`DIME_CPU`; ``**vars(DIME_PAPER)`` builds the published
    networks.

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        denoising_steps: number of denoising steps ``N``.
        process: options of the denoising process; None is :data:`DIME_PROCESS`.
        network: options of the score network.
        critic: options of the Q ensemble, which sees actions mapped to [-1, 1].
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes.
        noise_key: see :class:`DenoisingActor`.
        device: where to put the parameters.

    Returns:
        The actor, a critic that writes ``state_action_value`` ``[*B, E, 1]`` and, with atoms,
        ``state_action_value_logits`` ``[*B, E, K]``, and the shared statistics (or None).

    Raises:
        ValueError: as :func:`build_denoising_actor`, and for options that are out of range or for
            value functions only.
    """
    network, critic = network or DIME_CPU.network, critic or DIME_CPU.critic
    if critic.hl_gauss:
        raise ValueError(
            "hl_gauss=True is for critics that are fitted to numbers (build_regression_networks, "
            "build_diffsac_networks, build_diffwpo_networks); DIME's are distributional."
        )
    return build_regression_networks(
        env,
        denoising_steps=denoising_steps,
        process=process or DIME_PROCESS,
        network=network,
        critic=critic,
        observation_keys=observation_keys,
        keys=keys,
        noise_key=noise_key,
        device=device,
    )


def build_regression_networks(
    env: EnvBase,
    *,
    denoising_steps: int = 8,
    process: AnyProcessConfig | None = None,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    noise_key: NestedKey | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """Actor and Q ensemble ``Q_j(s, a)`` for losses that regress the actor's network.

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        denoising_steps: number of denoising steps ``N``.
        process: options of the process, whose type says which one it is; None is a
            variance-preserving diffusion with the cosine schedule.
        network: options of the actor's network; None has two layers of 128.
        critic: options of the Q ensemble, which sees actions mapped to [-1, 1]; None has two
            scalar ones with layer normalisation.
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes.
        noise_key: see :class:`DenoisingActor`.
        device: where to put the parameters.

    Returns:
        The actor, a critic that writes ``state_action_value`` ``[*B, E, 1]`` and, with bins,
        ``state_action_value_logits`` ``[*B, E, K]``, and the shared statistics (or None).

    Raises:
        ValueError: as :func:`build_denoising_actor`, and for options that are out of range or for
            value functions only.
    """
    network, critic = network or _DIFFSAC_NETWORK, critic or _DIFFSAC_CRITIC
    check_no_value_function(network)
    sizes = read_sizes(env, observation_keys, network, keys or ActorKeys())
    recipe = chain_recipe(network, denoising_steps, process or DiffusionConfig())
    actor = make_actor(recipe, sizes, device, noise_key=noise_key)
    q_module = make_action_critic(sizes, critic)
    return ActorCritic(actor, q_module.to(device), sizes.statistics)


def build_diffsac_networks(
    env: EnvBase,
    *,
    denoising_steps: int = 8,
    process: ProcessConfig | None = None,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    return_chain: ReturnedChain = "latents",
    noise_key: NestedKey | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """Actor (with the latents of its chains) and Q ensemble ``Q_j(s, x_{n+1}, n)`` for DiffSAC.

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        denoising_steps: number of denoising steps ``N``.
        process: options of the denoising process.
        network: options of the score network; None has two layers of 128 without observation
            statistics, which target networks would leave behind.
        critic: options of the Q ensemble; None has two scalar ones with layer normalisation.
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes.
        return_chain: what acting writes of a chain; the loss reads the latents and nothing else.
        noise_key: see :class:`DenoisingActor`.
        device: where to put the parameters.

    Returns:
        The actor, a critic that writes ``state_action_value`` ``[*B, E, 1]`` and, with bins,
        ``state_action_value_logits`` ``[*B, E, K]``, and the shared statistics (or None).

    Raises:
        ValueError: as :func:`build_denoising_actor`, and for options that are out of range or for
            other methods only.
    """
    network, critic = network or _DIFFSAC_NETWORK, critic or _DIFFSAC_CRITIC
    process = process or ProcessConfig()
    check_no_value_function(network)
    sizes = read_sizes(env, observation_keys, network, keys or ActorKeys())
    recipe = ActorRecipe("denoising", network, denoising_steps, process)
    actor = make_actor(recipe, sizes, device, return_chain=return_chain, noise_key=noise_key)
    q_module = make_denoising_critic(sizes, denoising_steps, critic, network, process.prior_std)
    return ActorCritic(actor, q_module.to(device), sizes.statistics)


def build_gaussian_sac_networks(
    env: EnvBase,
    *,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    action_key: NestedKey = "action",
    device: torch.device | str | None = None,
) -> ActorCritic:
    """The Gaussian baseline: TorchRL's TanhNormal actor, and critics for TorchRL's SACLoss.

    The critic of the result is a ``ModuleList`` of single Q networks that write
    ``state_action_value`` ``[*B, 1]``. Pass it as a list, which keeps their initial weights::

        SACLoss(networks.actor, list(networks.critic), num_qvalue_nets=len(networks.critic))

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        network: only ``actor_hidden`` is used; None has two layers of 256.
        critic: scalar critics without batch normalisation; None has two of two layers of 256.
        observation_keys: observation entries to read, concatenated.
        action_key: which of the environment's actions the actor is for.
        device: where to put the parameters.

    Raises:
        ValueError: as :func:`build_dime_networks`, and for options that SACLoss cannot train.
    """
    network, critic = network or _SAC_NETWORK, critic or _SAC_CRITIC
    check_no_value_function(network)
    _check_sac(network, critic)
    sizes = read_sizes(env, observation_keys, network, ActorKeys(action=action_key))
    actor = make_actor(ActorRecipe("gaussian_sac", network), sizes, device)
    critics = make_single_critics(sizes, critic)
    return ActorCritic(actor, critics.to(device), sizes.statistics)


def _check_sac(network: NetworkConfig, critic: CriticConfig) -> None:
    if network.share_encoder:
        raise ArgumentError(
            "share_encoder",
            True,
            "does not go with SACLoss, which keeps the parameters of its critics apart; leave it "
            "out: actor and critics then have encoders of their own.",
        )
    if network.normalize_observations:
        raise ValueError(
            "normalize_observations=True does not go with SACLoss, whose target critics keep the "
            "statistics of the start; normalise in the environment (torchrl.envs.VecNormV2)."
        )
    if critic.support() is not None or critic.normalization == "batch":
        raise ValueError(
            "SACLoss trains scalar critics without batch normalisation: use "
            f"CriticConfig(atoms=None, normalization=None or 'layer'), got atoms={critic.atoms} "
            f"and normalization={critic.normalization!r}, gaussian={critic.gaussian}."
        )
