"""Value functions and Q ensembles, for sizes that are already known."""

from dataclasses import replace

from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from diffpolicy.actors.build.sizes import Sizes
from diffpolicy.actors.configs import CriticConfig, NetworkConfig, ProcessConfig
from diffpolicy.networks import (
    CategoricalSupport,
    DenoisingQEnsemble,
    DenoisingValueNetwork,
    GaussianHead,
    QEnsemble,
    StepEmbedding,
)


def make_denoising_value(
    sizes: Sizes, denoising_steps: int, process: ProcessConfig, network: NetworkConfig
) -> TensorDictModule:
    """``V(s, x_n, n)``, which writes ``state_value`` and, with a support, its logits."""
    support = network.support()
    value_network = DenoisingValueNetwork(
        sizes.observation_dim,
        sizes.action_dim,
        denoising_steps,
        hidden_sizes=network.critic_hidden,
        normalizer=sizes.normalizer,
        support=support,
        embedding=_embedding(denoising_steps, network),
        latent_scale=process.prior_std if network.scale_latent else 1.0,
    )
    return TensorDictModule(
        sizes.concatenated(value_network),
        in_keys=[*sizes.observation_keys, sizes.keys.latent, sizes.keys.step],
        out_keys=_out_keys("state_value", logits=support is not None),
    )


def make_denoising_critic(
    sizes: Sizes,
    denoising_steps: int,
    critic: CriticConfig,
    network: NetworkConfig,
    latent_scale: float,
) -> TensorDictModule:
    """The Q ensemble ``Q_j(s, x_{n+1}, n)`` over the denoising MDP.

    Raises:
        ValueError: for the head of a distributional critic, which these losses do not train.
    """
    support = critic.support()
    if isinstance(support, (CategoricalSupport, GaussianHead)):
        raise ValueError(
            "the critics of the denoising MDP are scalar (atoms=None) or HL-Gauss "
            f"(hl_gauss=True), got atoms={critic.atoms}, hl_gauss=False and "
            f"gaussian={critic.gaussian}."
        )
    ensemble = DenoisingQEnsemble(
        sizes.observation_dim,
        sizes.action_dim,
        denoising_steps,
        ensemble_size=critic.ensemble_size,
        hidden_sizes=critic.hidden,
        normalization=critic.normalization,
        support=support,
        normalizer=sizes.normalizer,
        embedding=_embedding(denoising_steps, network),
        latent_scale=latent_scale,
        value_scale=critic.value_scale,
        warmup_steps=critic.warmup_steps,
        eps_in_correction=critic.eps_in_correction,
    )
    return TensorDictModule(
        sizes.concatenated(ensemble),
        in_keys=[*sizes.observation_keys, sizes.keys.next_latent, sizes.keys.step],
        out_keys=_out_keys("state_action_value", logits=support is not None),
    )


def make_action_critic(sizes: Sizes, critic: CriticConfig) -> TensorDictModule:
    """The Q ensemble ``Q_j(s, a)``, which sees actions mapped to [-1, 1]."""
    network = _q_ensemble(sizes, critic)
    return _action_critic(sizes, network, logits=network.support is not None)


def make_single_critics(sizes: Sizes, critic: CriticConfig) -> nn.ModuleList:
    """As many scalar critics ``Q(s, a)`` as the ensemble has members, one module each."""
    single = replace(critic, ensemble_size=1)
    return nn.ModuleList(
        _action_critic(sizes, _Single(_q_ensemble(sizes, single)), logits=False)
        for _ in range(critic.ensemble_size)
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


class _Single(nn.Module):
    """A scalar ensemble of one member, without the dimension of the members."""

    def __init__(self, ensemble: QEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Value ``[*B, 1]``."""
        return self.ensemble(observation, action).squeeze(-2)


def _action_critic(sizes: Sizes, network: nn.Module, *, logits: bool) -> TensorDictModule:
    return TensorDictModule(
        sizes.concatenated(network),
        in_keys=[*sizes.observation_keys, sizes.keys.action],
        out_keys=_out_keys("state_action_value", logits=logits),
    )


def _q_ensemble(sizes: Sizes, critic: CriticConfig) -> QEnsemble:
    low, high = sizes.bounds
    return QEnsemble(
        sizes.observation_dim,
        sizes.action_dim,
        ensemble_size=critic.ensemble_size,
        hidden_sizes=critic.hidden,
        normalization=critic.normalization,
        support=critic.support(),
        action_low=low,
        action_high=high,
        normalizer=sizes.normalizer,
        value_scale=critic.value_scale,
        warmup_steps=critic.warmup_steps,
        eps_in_correction=critic.eps_in_correction,
    )


def _embedding(denoising_steps: int, network: NetworkConfig) -> StepEmbedding:
    return StepEmbedding(
        denoising_steps, *network.step_embedding, activation=network.step_activation
    )


def _out_keys(value: str, *, logits: bool) -> list[NestedKey]:
    return [value, f"{value}_logits"] if logits else [value]
