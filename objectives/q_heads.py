"""The heads of Q networks: what their outputs mean."""

from typing import TypeAlias, get_args

from tensordict.nn import EnsembleModule, TensorDictSequential
from torch import nn

from diffpolicy.networks import CategoricalSupport, GaussianHead, HLGauss

Head: TypeAlias = CategoricalSupport | HLGauss | GaussianHead


def find_head(network: nn.Module) -> Head | None:
    """The head of Q networks, None if they are scalar.

    Raises:
        ValueError: for several heads, or one inside of an EnsembleModule.
    """
    found = [m for m in network.modules() if isinstance(m, get_args(Head))]
    if len(found) > 1:
        raise ValueError(
            f"qvalue_network has {len(found)} heads; let its members share one "
            "CategoricalSupport, HLGauss or GaussianHead."
        )
    if found and any(isinstance(m, EnsembleModule) for m in network.modules()):
        raise ValueError(
            "an EnsembleModule copies the head of its critics; use a QEnsemble, or a list of "
            "networks that share one CategoricalSupport, HLGauss or GaussianHead."
        )
    return found[0] if found else None


def writes_ensemble_first(network: nn.Module) -> bool:
    """Whether a network writes values ``[E, *B, 1]``, as tensordict's EnsembleModule does."""
    while isinstance(network, TensorDictSequential):
        network = network.module[-1]
    return isinstance(network, EnsembleModule)
