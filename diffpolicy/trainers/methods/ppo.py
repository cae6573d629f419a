"""Proximal policy optimisation: the options that DiffPPO and the Gaussian baseline share."""

from diffpolicy.actors import NetworkConfig
from diffpolicy.trainers.config.critic import CriticLossOptions, CriticOptions
from diffpolicy.trainers.config.network import NetworkOptions
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.config.options import above, configuration, option
from diffpolicy.trainers.methods.networks import network_options


@configuration(critic_coeff=0.5, loss_critic_type="smooth_l1")
class PPOConfig(OnPolicyConfig, NetworkOptions, CriticOptions, CriticLossOptions):
    """Proximal policy optimisation."""

    clip_epsilon: float = option(0.2, "clip range of the probability ratio", valid=above(0))
    clip_value: float | None = option(
        None, "clip range of the value around its old value (default: no clipping)", valid=above(0)
    )


def network_config(
    config: PPOConfig, value_support: tuple[float, float, int] | None = None
) -> NetworkConfig:
    """The networks of policy and value function that the options describe."""
    base = NetworkConfig(
        critic_hidden=config.critic_hidden_sizes,
        normalize_observations=config.normalize_observations,
        value_support=value_support,
    )
    return network_options(config, base)
