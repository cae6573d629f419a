"""The algebra of the losses by subject, as pure functions with their equations.

Element-wise results, the caller reduces; no exchange between ranks; tensors that do not fit raise.
"""

from objectives.functional.critic import (
    CategoricalLoss,
    ValueLoss,
    categorical_loss,
    clipped_distance,
    clipped_mass,
    clipped_value,
    explained_variance,
    project_categorical,
    refined_gaussian_loss,
    symmetric_value_range,
    value_distance,
)
from objectives.functional.entropy import (
    DiscountedCost,
    discounted_cost,
    entropy_bound,
)
from objectives.functional.mixture import (
    GaussianMixture,
    fit_gaussian_mixture,
    mixture_entropy,
)
from objectives.functional.policy import (
    AdvantageNormalization,
    ClippedSurrogate,
    NormalizedAdvantage,
    RatioStatistics,
    clipped_surrogate,
    effective_sample_size,
    kernel_divergence,
    noising_surrogate,
    normalized_advantage,
    ratio_statistics,
    refreshed_advantage,
    scaled_gradient,
    wasserstein_surrogate,
)
from objectives.functional.returns import (
    AdvantageEstimate,
    DiscountMode,
    denoising_gae,
    denoising_q_returns,
    soft_target,
    step_discount,
)

__all__ = [
    "AdvantageEstimate",
    "AdvantageNormalization",
    "CategoricalLoss",
    "ClippedSurrogate",
    "DiscountMode",
    "DiscountedCost",
    "GaussianMixture",
    "NormalizedAdvantage",
    "RatioStatistics",
    "ValueLoss",
    "categorical_loss",
    "clipped_distance",
    "clipped_mass",
    "clipped_surrogate",
    "clipped_value",
    "denoising_gae",
    "denoising_q_returns",
    "discounted_cost",
    "effective_sample_size",
    "entropy_bound",
    "explained_variance",
    "fit_gaussian_mixture",
    "kernel_divergence",
    "mixture_entropy",
    "noising_surrogate",
    "normalized_advantage",
    "project_categorical",
    "ratio_statistics",
    "refined_gaussian_loss",
    "refreshed_advantage",
    "scaled_gradient",
    "soft_target",
    "step_discount",
    "symmetric_value_range",
    "value_distance",
    "wasserstein_surrogate",
]
