"""Options of processes and networks, and the two presets of DIME."""

from dataclasses import dataclass
from typing import TypeAlias

from diffpolicy.networks import CategoricalSupport, GaussianHead, HLGauss, MakeEncoder
from diffpolicy.networks.critics import SupportEnds
from diffpolicy.networks.mlp import Activation, Initialization
from diffpolicy.networks.q_ensemble import Normalization
from diffpolicy.sde import Variance
from diffpolicy.sde.process import NoisingStep


@dataclass(frozen=True)
class ProcessConfig:
    """Options of :class:`~diffpolicy.sde.DenoisingProcess`, which documents them."""

    prior_std: float = 0.4
    schedule: str = "linear"
    step_size: float = 0.08
    learn_step_size: bool = True
    step_size_per_step: bool = False
    friction: float = 1.0
    learn_friction: bool = True
    noising_step: NoisingStep = "next"


@dataclass(frozen=True)
class DiffusionConfig:
    """Options of :class:`~diffpolicy.sde.VariancePreservingProcess`, which documents them."""

    schedule: str = "cosine"
    variance: Variance = "posterior"
    prior_std: float = 1.0
    clip: float | None = 1.0
    inward_gradient: bool = False
    min_std: float = 0.0


@dataclass(frozen=True)
class FlowConfig:
    """Options of :class:`~diffpolicy.sde.RectifiedFlowProcess`, which documents them."""

    prior_std: float = 1.0


@dataclass(frozen=True)
class MeanFlowConfig:
    """Options of :class:`~diffpolicy.sde.MeanFlowProcess`, which documents them."""

    prior_std: float = 1.0


AnyProcessConfig: TypeAlias = ProcessConfig | DiffusionConfig | FlowConfig | MeanFlowConfig


@dataclass(frozen=True)
class NetworkConfig:
    """Options of score networks, of the value functions of PPO, and what all networks share.

    Attributes:
        actor_hidden: widths of the score (or policy) network.
        critic_hidden: widths of the value function; Q networks take a :class:`CriticConfig`.
        normalize_observations: standardise observations with running statistics that actor
            and critic share.
        value_support: ``(minimum, maximum, bins)`` of an HL-Gauss value function; None is a scalar
            head.
        support_ends: what lies at the ends of that support, see :class:`HLGauss`.
        step_embedding: frequencies, hidden width and size of the embedding of the denoising step.
        scale_latent: whether the latent enters divided by the prior std.
        score_activation: activation of the score network and of its step embedding, a name of
            :data:`~diffpolicy.networks.ACTIVATIONS`.
        step_activation: activation of the step embeddings of value and Q networks.
        score_initialization: see :class:`~diffpolicy.networks.ScoreNetwork`.
        encoder: builds an encoder from the shape of an image, for example
            :class:`~diffpolicy.networks.ImageEncoder`, or is one, of which copies are made; needed
            where an observation is an image. Actor and critics get encoders of their own.
        share_encoder: whether they share one, which the losses of the critics train alone.
    """

    actor_hidden: tuple[int, ...] = (64, 64)
    critic_hidden: tuple[int, ...] = (64, 64)
    normalize_observations: bool = True
    value_support: tuple[float, float, int] | None = None
    support_ends: SupportEnds = "edges"
    step_embedding: tuple[int, int, int] = (32, 32, 16)
    scale_latent: bool = True
    score_activation: Activation = "gelu"
    step_activation: Activation = "gelu"
    score_initialization: Initialization = "torch"
    encoder: MakeEncoder | None = None
    share_encoder: bool = False

    def support(self) -> HLGauss | None:
        """The HL-Gauss head, or None for a scalar value function."""
        if self.value_support is None:
            return None
        return HLGauss(*self.value_support, ends=self.support_ends)


@dataclass(frozen=True)
class CriticConfig:
    """Options of an ensemble of Q networks, :class:`~diffpolicy.networks.QEnsemble`.

    Attributes:
        hidden: widths of each member.
        ensemble_size: number of members.
        normalization: ``"batch"`` (batch renormalisation), ``"layer"`` or None.
        atoms: number of atoms (or bins) of a categorical head; None is a scalar head.
        value_range: lowest and highest atom, or the ends of the bins.
        hl_gauss: train a categorical head on smoothed scalar targets (:class:`HLGauss`), for losses
            that fit values to numbers; DIME's critics are distributional.
        gaussian: predict the mean and the standard deviation of the return
            (:class:`~diffpolicy.networks.GaussianHead`), with ``atoms=None``.
        support_ends: what lies at the ends of that head's support, see :class:`HLGauss`.
        value_scale: factor on the values of a scalar head, see
            :class:`~diffpolicy.networks.QEnsemble`.
        warmup_steps: training forwards of plain batch normalisation before its correction.
        eps_in_correction: see :class:`~diffpolicy.networks.BatchRenorm`.
    """

    hidden: tuple[int, ...] = (256, 256)
    ensemble_size: int = 2
    normalization: Normalization | None = "batch"
    atoms: int | None = 101
    value_range: tuple[float, float] = (-200.0, 200.0)
    hl_gauss: bool = False
    gaussian: bool = False
    support_ends: SupportEnds = "edges"
    value_scale: float = 1.0
    warmup_steps: int = 100_000
    eps_in_correction: bool = True

    def __post_init__(self) -> None:
        if self.gaussian and self.atoms is not None:
            raise ValueError(
                f"gaussian=True has no atoms, got atoms={self.atoms}; use atoms=None with it."
            )

    def support(self) -> CategoricalSupport | HLGauss | GaussianHead | None:
        """The categorical or Gaussian head, or None for a scalar head."""
        if self.gaussian:
            return GaussianHead()
        if self.atoms is None:
            return None
        if self.hl_gauss:
            return HLGauss(*self.value_range, self.atoms, ends=self.support_ends)
        return CategoricalSupport(*self.value_range, self.atoms)


@dataclass(frozen=True)
class DIMEPreset:
    """Everything that sizes DIME: ``build_dime_networks(env, **vars(preset))``."""

    denoising_steps: int
    process: ProcessConfig
    network: NetworkConfig
    critic: CriticConfig


DIME_PROCESS = ProcessConfig(
    prior_std=2.5, schedule="cosine", step_size=0.1, friction=1.0, noising_step="same"
)
"""The process of arXiv 2502.02316, with learned step size and friction."""

DIME_PAPER = DIMEPreset(
    denoising_steps=16,
    process=DIME_PROCESS,
    network=NetworkConfig(
        actor_hidden=(256, 256, 256),
        normalize_observations=False,
        step_embedding=(256, 256, 256),
        scale_latent=False,
        score_activation="gelu_tanh",
        score_initialization="lecun",
    ),
    critic=CriticConfig(hidden=(2048, 2048)),
)
"""The published networks (arXiv 2502.02316), which need a GPU."""

DIME_CPU = DIMEPreset(
    denoising_steps=8,
    process=DIME_PROCESS,
    network=NetworkConfig(
        actor_hidden=(128, 128),
        normalize_observations=False,
        scale_latent=False,
        score_activation="gelu_tanh",
        score_initialization="lecun",
    ),
    critic=CriticConfig(),
)
"""The same algorithm with networks for a CPU."""
