"""What the losses on denoising chains share: the actor, keys and reductions."""

from abc import abstractmethod
from typing import Any, ClassVar, Self, TypeVar

import torch
from tensordict import NestedKey, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors import ActorKeys, ChainActor
from diffpolicy.networks import BatchRenorm, RunningNorm
from objectives.base import NetworkLoss
from objectives.checks import check_choice

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ChainLoss(NetworkLoss):
    """Base of losses on denoising chains: the functional actor, keys and reductions.

    Subclasses give ``_default_in_keys`` and ``_default_out_keys``; both stay settable, as in every
    TorchRL loss.

    Args:
        actor_network: an actor that has the members of ``_actor_protocol``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        delay_actor: whether there is a target actor.

    Raises:
        TypeError: if the actor lacks members of the protocol.
        ValueError: for an unknown reduction, or a target actor with running statistics.
    """

    #: What the loss needs from an actor, :class:`ChainActor` or :class:`PathActor`.
    _actor_protocol: ClassVar[type] = ChainActor

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self, actor_network: nn.Module, *, reduction: str = "mean", delay_actor: bool = False
    ) -> None:
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] | None = None
        super().__init__()
        protocol = self._actor_protocol
        if not isinstance(actor_network, protocol):
            raise TypeError(
                f"actor_network must offer the members of diffpolicy.actors.{protocol.__name__} "
                f"(see its documentation), got {type(actor_network).__name__}."
            )
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.reduction = reduction
        if delay_actor:
            check_no_statistics("delay_actor", actor_network)
        self.delay_actor = delay_actor
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)

    @property
    def chain_keys(self) -> ActorKeys:
        """Keys of the chain, given by the actor."""
        return self.actor_network.keys

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that the loss reads."""
        return self._default_in_keys() if self._in_keys is None else self._in_keys

    @in_keys.setter
    def in_keys(self, value: list[NestedKey]) -> None:
        self._in_keys = value

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries that the loss returns: losses to be summed first, then diagnostics."""
        return self._default_out_keys() if self._out_keys is None else self._out_keys

    @out_keys.setter
    def out_keys(self, value: list[NestedKey]) -> None:
        self._out_keys = value

    def make_value_estimator(
        self, value_type: ValueEstimators | str | type | None = None, **hyperparams: Any
    ) -> Self:
        """Build the value estimator; hyper-parameters and defaults are in the class's docstring.

        Args:
            value_type: ``default_value_estimator`` or its name in lower case, or an estimator
                class or instance.
            **hyperparams: passed to the estimator.

        Raises:
            NotImplementedError: for any other estimator type.
        """
        default = self.default_value_estimator
        if value_type in (None, default, default.name.lower()):
            self.value_type = default
            self._value_estimator = self._make_default_estimator(**hyperparams)
        elif isinstance(value_type, (ValueEstimators, str)):
            raise NotImplementedError(
                f"value_type {value_type!r} is not implemented for {type(self).__name__}; use "
                f"{default}, or pass an estimator class or instance."
            )
        else:
            super().make_value_estimator(value_type, **hyperparams)
        self._forward_value_estimator_keys()
        return self

    @abstractmethod
    def _make_default_estimator(self, **hyperparams: Any) -> ValueEstimatorBase: ...

    @abstractmethod
    def _default_in_keys(self) -> list[NestedKey]: ...

    @abstractmethod
    def _default_out_keys(self) -> list[NestedKey]: ...

    def _valid(self, rows: TensorDictBase, like: Tensor) -> Tensor | None:
        """Conjunction of the masks that apply to the loss, in the shape of ``like``."""
        valid = None
        for key in self._loss_mask_keys():
            mask = rows.get(key, None)
            if mask is not None:
                mask = self._expand_loss_mask(mask, like)
                valid = mask if valid is None else valid & mask
        return valid

    def _maybe_get_priority_weight(self, tensordict: TensorDictBase) -> Tensor | None:
        # TorchRL's own look-up does not find nested keys.
        if self.use_prioritized_weights not in (True, "auto"):
            return None
        return tensordict.get(self.tensor_keys.priority_weight, None)

    def _reduce(self, value: Tensor, rows: TensorDictBase, reduction: str | None = None) -> Tensor:
        """Reduce ``[*B, 1]``: masks and priority weights as in every TorchRL loss."""
        value = value.squeeze(-1)
        weights = self._maybe_get_priority_weight(rows)
        if weights is not None:
            weights = self._expand_loss_mask(weights, value)
        return self._reduce_loss(value, rows, reduction=reduction, weights=weights)

    def _output_batch_size(self, rows: TensorDictBase) -> torch.Size:
        return rows.batch_size if self.reduction == "none" else torch.Size([])


def find_submodule(network: nn.Module, kind: type[ModuleT]) -> ModuleT | None:
    """The first submodule of a class, None if there is none."""
    return next((module for module in network.modules() if isinstance(module, kind)), None)


def check_no_statistics(argument: str, network: nn.Module) -> None:
    """Raise a ValueError if a network that gets a target copy keeps running statistics."""
    tracking = (BatchRenorm, RunningNorm, _BatchNorm)
    found = next((type(m).__name__ for m in network.modules() if isinstance(m, tracking)), None)
    if found is not None:
        raise ValueError(
            f"{argument}=True does not go with the running statistics of {found}, which target "
            "updates leave behind: batch normalisation can be replaced by layer normalisation, "
            "and observation statistics left out with "
            f"NetworkConfig(normalize_observations=False); or use {argument}=False."
        )
