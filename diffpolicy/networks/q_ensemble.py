"""Ensembles of Q networks that evaluate all members in one batched computation."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from diffpolicy.networks.batch_renorm import BatchRenorm
from diffpolicy.networks.categorical import CategoricalSupport
from diffpolicy.networks.critics import HLGauss
from diffpolicy.networks.gaussian import GaussianHead
from diffpolicy.networks.mlp import lecun_normal_
from diffpolicy.networks.normalization import RunningNorm

Normalization = Literal["batch", "layer"]


class EnsembleLinear(nn.Module):
    """``E`` linear layers as one batched matrix product.

    Weights start truncated LeCun normal, each member on its own, and biases at zero.

    Args:
        ensemble_size: number of members ``E``.
        in_features: input width.
        out_features: output width.
    """

    def __init__(self, ensemble_size: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ensemble_size, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(ensemble_size, 1, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights and set the biases to zero."""
        lecun_normal_(self.weight, self.weight.shape[1])
        nn.init.zeros_(self.bias)

    def forward(self, value: Tensor) -> Tensor:
        """Map ``[E, B, in_features]`` to ``[E, B, out_features]``."""
        return torch.baddbmm(self.bias, value, self.weight)

    def extra_repr(self) -> str:
        """Sizes for ``print(module)``."""
        return "ensemble_size={}, in_features={}, out_features={}".format(*self.weight.shape)


class EnsembleLayerNorm(nn.Module):
    """Layer normalisation with a scale and a shift of its own for every member.

    Args:
        ensemble_size: number of members ``E``.
        num_features: width.
    """

    def __init__(self, ensemble_size: int, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ensemble_size, 1, num_features))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, 1, num_features))

    def reset_parameters(self) -> None:
        """Set scale and shift to one and zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, value: Tensor) -> Tensor:
        """Normalise ``[E, B, F]`` over ``F``."""
        normalised = nn.functional.layer_norm(value, value.shape[-1:])
        return normalised * self.weight + self.bias


class QEnsemble(nn.Module):
    """``E`` independent Q networks ``Q_j(s, a)`` with scalar, categorical or Gaussian heads.

    ``normalization="batch"`` makes the critic of CrossQ and DIME (arXiv 1902.05605, 2502.02316):
    batch renormalisation of the input and after every activation. In training mode its values
    depend on the whole batch, so evaluate current and next state-action pairs in one call.
    ``"layer"`` normalises after every activation only and treats rows alone, None does not
    normalise.

    Args:
        observation_dim: size ``S`` of the observation.
        action_dim: number of action dimensions ``A``.
        ensemble_size: number of members ``E``.
        hidden_sizes: widths of the hidden layers of each member.
        normalization: ``"batch"``, ``"layer"`` or None.
        support: atoms of a categorical head, an HL-Gauss head, or a Gaussian one; None makes a
            scalar head.
        action_low: lower bounds of the action ``[A]``; with ``action_high`` the action enters the
            network mapped to [-1, 1]. None leaves it as it is.
        action_high: upper bounds of the action ``[A]``.
        normalizer: statistics that standardise the observation, or None.
        value_scale: factor on the values of a scalar head. An optimiser such as Adam then moves
            values so much less in one step, relative to their size; for values of the order of one.
        warmup_steps: training forwards of plain batch normalisation, see :class:`BatchRenorm`.
        eps_in_correction: see :class:`BatchRenorm`.

    Raises:
        ValueError: for arguments outside their range.

    Examples:
        >>> critic = QEnsemble(3, 1, hidden_sizes=(8,), normalization="layer")
        >>> critic(torch.randn(5, 3), torch.randn(5, 1)).shape
        torch.Size([5, 2, 1])
    """

    action_center: Tensor
    action_scale: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        ensemble_size: int = 2,
        hidden_sizes: Sequence[int] = (256, 256),
        normalization: Normalization | None = None,
        support: CategoricalSupport | HLGauss | GaussianHead | None = None,
        action_low: Tensor | None = None,
        action_high: Tensor | None = None,
        normalizer: RunningNorm | None = None,
        value_scale: float = 1.0,
        warmup_steps: int = 100_000,
        eps_in_correction: bool = True,
    ) -> None:
        super().__init__()
        if normalization not in ("batch", "layer", None):
            raise ValueError(
                f"normalization must be 'batch', 'layer' or None, got {normalization!r}."
            )
        widths = [observation_dim + action_dim, *hidden_sizes, support.bins if support else 1]
        if ensemble_size < 1 or min(widths) < 1:
            raise ValueError(
                "ensemble_size and every layer width must be at least 1, got "
                f"{ensemble_size} and {widths}."
            )
        if not value_scale > 0:
            raise ValueError(f"value_scale must be greater than 0, got {value_scale}.")
        if support is not None and value_scale != 1:
            head = type(support).__name__
            raise ValueError(f"value_scale is for scalar heads, got {value_scale} with a {head}.")
        self.ensemble_size = ensemble_size
        self.support = support
        self.value_scale = value_scale
        self.normalizer = normalizer
        center, scale = _action_range(action_dim, action_low, action_high)
        self.register_buffer("action_center", center)
        self.register_buffer("action_scale", scale)

        def norm(features: int) -> list[nn.Module]:
            if normalization == "batch":
                renorm = BatchRenorm(
                    features,
                    ensemble_size=ensemble_size,
                    warmup_steps=warmup_steps,
                    eps_in_correction=eps_in_correction,
                )
                return [renorm]
            return [EnsembleLayerNorm(ensemble_size, features)] if normalization else []

        layers: list[nn.Module] = norm(widths[0]) if normalization == "batch" else []
        for before, after in pairwise(widths[:-1]):
            layers += [
                EnsembleLinear(ensemble_size, before, after),
                nn.ReLU(inplace=True),
                *norm(after),
            ]
        self.net = nn.Sequential(*layers, EnsembleLinear(ensemble_size, *widths[-2:]))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Values of state-action pairs.

        Args:
            observation: ``[*B, S]``.
            action: ``[*B, A]``.

        Returns:
            ``[*B, E, 1]``; with a support also the logits ``[*B, E, K]`` (with a Gaussian head its
            two outputs).
        """
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        scaled = (action - self.action_center) / self.action_scale
        features = torch.cat((observation, scaled), -1)
        batch = features.shape[:-1]
        rows = features.reshape(1, math.prod(batch), -1).expand(self.ensemble_size, -1, -1)
        out = self.net(rows).movedim(0, -2)
        out = out.reshape(*batch, *out.shape[-2:])
        return self.value_scale * out if self.support is None else (self.support.mean(out), out)


def _action_range(
    action_dim: int, low: Tensor | None, high: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Centre and half width ``[A]`` of the action range; 0 and 1 without bounds."""
    if low is None and high is None:
        return torch.zeros(action_dim), torch.ones(action_dim)
    if low is None or high is None:
        raise ValueError("action_low and action_high must be given together.")
    dtype = torch.get_default_dtype()
    low, high = torch.as_tensor(low, dtype=dtype), torch.as_tensor(high, dtype=dtype)
    if low.shape != (action_dim,) or high.shape != (action_dim,) or not bool((low < high).all()):
        raise ValueError(
            f"action_low and action_high must be [{action_dim}] with low < high, got "
            f"{low.tolist()} and {high.tolist()}."
        )
    return (high + low) / 2, (high - low) / 2
