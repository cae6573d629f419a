"""Builders of actors and Q ensembles for off-policy methods."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal

from diffpolicy.actors.build import make_denoising_actor
from diffpolicy.actors.configs import (
    DIME_CPU,
    DIME_PROCESS,
    CriticConfig,
    NetworkConfig,
    ProcessConfig,
)
from diffpolicy.actors.keys import ActorKeys
from diffpolicy.actors.sizes import ActorCritic, Concatenated, Sizes, read_sizes
from diffpolicy.networks import QEnsemble, mlp


def build_dime_networks(
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
        device: where to put the parameters.

    Returns:
        The actor, a critic that writes ``state_action_value`` ``[*B, E, 1]`` and, with atoms,
        ``state_action_value_logits`` ``[*B, E, K]``, and the shared statistics (or None).

    Raises:
        ValueError: for a discrete or unbounded action spec, an unknown observation key, or options
            that are out of range or for value functions only.
    """
    process = process or DIME_PROCESS
    network = network or DIME_CPU.network
    critic = critic or DIME_CPU.critic
    keys = keys or ActorKeys()
    check_no_value_function(network)
    sizes = read_sizes(env, observation_keys, network, action_key=keys.action)
    actor = make_denoising_actor(sizes, denoising_steps, process, network, keys)
    values: list[NestedKey] = ["state_action_value"]
    q_module = TensorDictModule(
        Concatenated(_q_ensemble(sizes, critic), len(sizes.observation_keys)),
        in_keys=[*sizes.observation_keys, keys.action],
        out_keys=values if critic.atoms is None else [*values, "state_action_value_logits"],
    )
    return ActorCritic(actor.to(device), q_module.to(device), sizes.normalizer)


def build_gaussian_sac_networks(
    env: EnvBase,
    *,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
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
        device: where to put the parameters.

    Raises:
        ValueError: as :func:`build_dime_networks`, and for options that SACLoss cannot train.
    """
    network = network or NetworkConfig(actor_hidden=(256, 256), normalize_observations=False)
    critic = critic or CriticConfig(normalization=None, atoms=None)
    check_no_value_function(network)
    _check_sac(network, critic)
    sizes = read_sizes(env, observation_keys, network)
    spec, count = sizes.action_spec.to(device), len(sizes.observation_keys)
    policy = mlp(sizes.observation_dim, network.actor_hidden, 2 * sizes.action_dim, nn.ReLU)
    module = TensorDictModule(
        Concatenated(nn.Sequential(policy, NormalParamExtractor()), count),
        in_keys=sizes.observation_keys,
        out_keys=["loc", "scale"],
    )
    actor = ProbabilisticActor(
        module.to(device),
        in_keys=["loc", "scale"],
        spec=spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": spec.space.low, "high": spec.space.high},
    )
    members = [
        TensorDictModule(
            Concatenated(_Single(_q_ensemble(sizes, replace(critic, ensemble_size=1))), count),
            in_keys=[*sizes.observation_keys, "action"],
            out_keys=["state_action_value"],
        )
        for _ in range(critic.ensemble_size)
    ]
    return ActorCritic(actor, nn.ModuleList(members).to(device), sizes.normalizer)


class _Single(nn.Module):
    """A scalar ensemble of one member, without the dimension of the members."""

    def __init__(self, ensemble: QEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Value ``[*B, 1]``."""
        return self.ensemble(observation, action).squeeze(-2)


def _q_ensemble(sizes: Sizes, critic: CriticConfig) -> QEnsemble:
    if critic.hl_gauss:
        raise ValueError(
            "hl_gauss=True is for the critics of the denoising MDP (build_diffsac_networks, "
            "build_diffwpo_networks); leave it out."
        )
    bounds = sizes.action_spec.cpu().space
    return QEnsemble(
        sizes.observation_dim,
        sizes.action_dim,
        ensemble_size=critic.ensemble_size,
        hidden_sizes=critic.hidden,
        normalization=critic.normalization,
        support=critic.support(),
        action_low=bounds.low,
        action_high=bounds.high,
        normalizer=sizes.normalizer,
        warmup_steps=critic.warmup_steps,
    )


def check_no_value_function(network: NetworkConfig) -> None:
    """Raise ValueError for options of value functions."""
    default = NetworkConfig()
    for name in ("critic_hidden", "value_support"):
        if getattr(network, name) != getattr(default, name):
            raise ValueError(
                f"{name}={getattr(network, name)} is for the value functions of PPO; Q networks "
                "take their options from critic=CriticConfig(...)."
            )


def _check_sac(network: NetworkConfig, critic: CriticConfig) -> None:
    if network.normalize_observations:
        raise ValueError(
            "normalize_observations=True does not go with SACLoss, whose target critics keep the "
            "statistics of the start; normalise in the environment (torchrl.envs.VecNormV2)."
        )
    if critic.atoms is not None or critic.normalization == "batch":
        raise ValueError(
            "SACLoss trains scalar critics without batch normalisation: use "
            f"CriticConfig(atoms=None, normalization=None or 'layer'), got atoms={critic.atoms} "
            f"and normalization={critic.normalization!r}."
        )
