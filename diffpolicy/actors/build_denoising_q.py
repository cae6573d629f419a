"""Builders of actors and Q ensembles over the denoising MDP."""

from collections.abc import Sequence

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase

from diffpolicy.actors.build import make_denoising_actor
from diffpolicy.actors.build_q import check_no_value_function
from diffpolicy.actors.configs import CriticConfig, NetworkConfig, ProcessConfig
from diffpolicy.actors.keys import ActorKeys
from diffpolicy.actors.sizes import ActorCritic, Concatenated, Sizes, read_sizes
from diffpolicy.networks import CategoricalSupport, DenoisingQEnsemble, StepEmbedding

_DIFFSAC_NETWORK = NetworkConfig(actor_hidden=(128, 128), normalize_observations=False)
_DIFFSAC_CRITIC = CriticConfig(normalization="layer", atoms=None)
_DIFFWPO_PROCESS = ProcessConfig(step_size_per_step=True, learn_friction=False)
_DIFFWPO_CRITIC = CriticConfig(hidden=(64, 64), normalization=None, atoms=None)


def build_diffsac_networks(
    env: EnvBase,
    *,
    denoising_steps: int = 8,
    process: ProcessConfig | None = None,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """Actor (with chains) and Q ensemble ``Q_j(s, x_{n+1}, n)`` for DiffSAC.

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        denoising_steps: number of denoising steps ``N``.
        process: options of the denoising process.
        network: options of the score network; None has two layers of 128 without observation
            statistics, which target networks would leave behind.
        critic: options of the Q ensemble; None has two scalar ones with layer normalisation.
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes.
        device: where to put the parameters.

    Returns:
        The actor, whose deterministic mode follows the kernel means, a critic that writes
        ``state_action_value`` ``[*B, E, 1]`` and, with bins, ``state_action_value_logits``
        ``[*B, E, K]``, and the shared statistics (or None).

    Raises:
        ValueError: for a discrete or unbounded action spec, an unknown observation key, or options
            that are out of range or for other methods only.
    """
    network, critic = network or _DIFFSAC_NETWORK, critic or _DIFFSAC_CRITIC
    process, keys = process or ProcessConfig(), keys or ActorKeys()
    return _build(env, denoising_steps, process, network, critic, observation_keys, keys, device)


def build_diffwpo_networks(
    env: EnvBase,
    *,
    denoising_steps: int = 4,
    process: ProcessConfig | None = None,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """Actor (with chains) and Q ensemble ``Q_j(s, x_{n+1}, n)`` for DiffWPO.

    As :func:`build_diffsac_networks`; the defaults are for on-policy training: a step size for
    every denoising step, fixed friction, and observation statistics.
    """
    network, critic = network or NetworkConfig(), critic or _DIFFWPO_CRITIC
    process, keys = process or _DIFFWPO_PROCESS, keys or ActorKeys()
    return _build(env, denoising_steps, process, network, critic, observation_keys, keys, device)


def _build(
    env: EnvBase,
    denoising_steps: int,
    process: ProcessConfig,
    network: NetworkConfig,
    critic: CriticConfig,
    observation_keys: Sequence[NestedKey],
    keys: ActorKeys,
    device: torch.device | str | None,
) -> ActorCritic:
    check_no_value_function(network)
    sizes = read_sizes(env, observation_keys, network, action_key=keys.action)
    actor = make_denoising_actor(sizes, denoising_steps, process, network, keys, return_chain=True)
    q_module = make_denoising_critic(
        sizes, denoising_steps, critic, keys, network.step_embedding, process.prior_std
    )
    return ActorCritic(actor.to(device), q_module.to(device), sizes.normalizer)


def make_denoising_critic(
    sizes: Sizes,
    denoising_steps: int,
    critic: CriticConfig,
    keys: ActorKeys,
    step_embedding: tuple[int, int, int],
    latent_scale: float,
) -> TensorDictModule:
    """The Q ensemble over the denoising MDP for sizes that are already known.

    Raises:
        ValueError: for the head of a distributional critic, which these losses do not train.
    """
    support = critic.support()
    if isinstance(support, CategoricalSupport):
        raise ValueError(
            "the critics of the denoising MDP are scalar (atoms=None) or HL-Gauss "
            f"(hl_gauss=True), got atoms={critic.atoms} and hl_gauss=False."
        )
    network = DenoisingQEnsemble(
        sizes.observation_dim,
        sizes.action_dim,
        denoising_steps,
        ensemble_size=critic.ensemble_size,
        hidden_sizes=critic.hidden,
        normalization=critic.normalization,
        support=support,
        normalizer=sizes.normalizer,
        embedding=StepEmbedding(denoising_steps, *step_embedding),
        latent_scale=latent_scale,
        warmup_steps=critic.warmup_steps,
    )
    values: list[NestedKey] = ["state_action_value"]
    return TensorDictModule(
        Concatenated(network, len(sizes.observation_keys)),
        in_keys=[*sizes.observation_keys, keys.next_latent, keys.step],
        out_keys=values if support is None else [*values, "state_action_value_logits"],
    )
