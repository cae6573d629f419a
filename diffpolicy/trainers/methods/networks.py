"""What the options of several methods say about networks, processes and temperatures."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

import torch

from diffpolicy.actors import CriticConfig, NetworkConfig, ProcessConfig, ReturnedChain
from diffpolicy.names import named_object
from diffpolicy.networks import RETURN_LIMIT, ImageEncoder
from diffpolicy.sde import DenoisingProcess
from diffpolicy.trainers.config.critic import QCriticOptions
from diffpolicy.trainers.config.network import NetworkOptions
from diffpolicy.trainers.config.process import OnPolicyChainOptions, ProcessOptions
from diffpolicy.trainers.config.reward import RewardOptions
from diffpolicy.trainers.config.temperature import TemperatureOptions
from objectives import LearnedTemperature

# Values of normalised rewards: twice what their returns come to, for entropies.
_VALUE_LIMIT = 2 * RETURN_LIMIT
# One step of Adam at 1e-3 moves the output of a layer-normalised critic by about 0.1, a fiftieth of
# the returns. A power of two, so that it rounds nothing.
_VALUE_SCALE = 1 / 32


class ValueOptions(Protocol):
    """The options that say how large values can be, and how they are predicted."""

    @property
    def normalize_rewards(self) -> bool:
        """Whether rewards are divided by the size of returns."""

    @property
    def critic_head(self) -> str:
        """What critics predict."""

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The range that was given."""

    @property
    def bins(self) -> int | None:
        """Number of atoms or bins, None for numbers."""


def value_range(config: ValueOptions) -> tuple[float, float]:
    """The range of a critic's atoms or bins: given, or that of normalised rewards.

    Raises:
        ValueError: if it was not given and is not known.
    """
    if config.value_range is not None:
        return config.value_range
    if not config.normalize_rewards:
        raise ValueError(
            f"--critic-head {config.critic_head} with --no-normalize-rewards needs --value-range "
            "MIN MAX: the range of the discounted returns is not known."
        )
    return -_VALUE_LIMIT, _VALUE_LIMIT


def network_options(config: NetworkOptions, base: NetworkConfig) -> NetworkConfig:
    """The policy's network and the encoders that the options describe; the rest is that of base."""
    encoder = config.encoder
    if isinstance(encoder, str):
        encoder = ImageEncoder if encoder == "cnn" else named_object(encoder, "encoder")
    return replace(
        base,
        actor_hidden=config.actor_hidden_sizes,
        encoder=encoder,
        share_encoder=config.share_encoder,
    )


def written_chain(config: NetworkOptions) -> ReturnedChain:
    """What acting writes of a chain: behind encoders all, as it would need every image again."""
    return "latents" if config.encoder is None else True


def scalar_critic_config(config: QCriticOptions) -> CriticConfig:
    """The ensemble of Q networks that the options describe, with scalar heads."""
    assert isinstance(config, RewardOptions)
    scale = config.value_scale or (_VALUE_SCALE if config.normalize_rewards else 1.0)
    return CriticConfig(
        hidden=config.critic_hidden_sizes,
        ensemble_size=config.num_qvalue_nets,
        normalization=normalization(config.critic_normalization),
        atoms=None,
        value_scale=scale,
    )


def with_head(critic: CriticConfig, config: ValueOptions) -> CriticConfig:
    """Scalar critics, or the same with the heads that the options say.

    Raises:
        ValueError: as :func:`value_range`.
    """
    if config.critic_head == "scalar":
        return critic
    if config.critic_head == "gaussian":
        return replace(critic, gaussian=True, value_scale=1.0)
    return replace(
        critic,
        atoms=config.bins,
        value_range=value_range(config),
        hl_gauss=config.critic_head == "hl_gauss",
        value_scale=1.0,
    )


def normalization(name: Literal["batch", "layer", "none"]) -> Literal["batch", "layer"] | None:
    """What :class:`CriticConfig` takes for a value of ``--critic-normalization``."""
    return None if name == "none" else name


def process_config(options: ProcessOptions) -> ProcessConfig:
    """The denoising process that the options describe."""
    return ProcessConfig(
        prior_std=options.prior_std,
        schedule=options.step_schedule,
        step_size=options.step_size,
        learn_step_size=options.learn_step_size,
        step_size_per_step=options.step_size_per_step,
        friction=options.friction,
        learn_friction=options.learn_friction,
    )


def noise_annealing(
    process: DenoisingProcess, config: OnPolicyChainOptions
) -> Callable[[float], None]:
    """Sets the noise of a process by the share of the learning rate that is left."""
    start, end = config.first_noise_scale, config.final_noise_scale
    return lambda left: process.set_noise_scale(end + (start - end) * left)


def temperature(options: TemperatureOptions, action_dim: int) -> float | LearnedTemperature:
    """The temperature that the options describe; the target counts per action dimension."""
    if not options.learn_temperature:
        return options.temperature
    return LearnedTemperature(options.temperature, options.target_entropy * action_dim)


def relative_rate(rate: float | None, lr: float, default: float) -> float:
    """A learning rate as a multiple of ``lr``: ``default`` times it where none is given."""
    return default if rate is None else rate / lr


def process_diagnostics(process: DenoisingProcess) -> dict[str, float]:
    """Step sizes, noise and friction of a chain, over its steps and action dimensions."""
    with torch.no_grad():
        sizes = process.step_sizes()
        return {
            "step_size_mean": float(sizes.mean()),
            "step_size_min": float(sizes.min()),
            "step_size_max": float(sizes.max()),
            "noise_std_mean": float(process.noise_std(sizes).mean()),
            "friction": float(process.friction.mean()),
        }
