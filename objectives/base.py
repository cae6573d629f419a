"""The base of the losses: a TorchRL loss module that takes its networks along."""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors import ActorKeys, with_encoder
from diffpolicy.networks import BatchRenorm, HLGauss, RunningNorm
from objectives.agents import per_agent
from objectives.checks import check_choice
from objectives.functional import ValueLoss
from objectives.q_critic import CriticReduction, QCritic, QNetworks, as_q_network
from objectives.q_heads import Head
from objectives.temperature import LearnedTemperature, Temperature, as_temperature
from objectives.transitions import write_priority


class DiffusionLoss(LossModule):
    """Base of the losses: a functional actor, keys, reductions, and networks that come along.

    TorchRL keeps the parameters of a network in ``<name>_params``, a submodule, and the network
    itself outside of the module tree. ``train()``, ``to()``, ``copy.deepcopy`` and ``pickle`` then
    treat the two apart. Here they reach both, and both stay the same tensors: acting with
    ``loss.actor_network`` and estimating advantages always use what the optimiser trains, and
    statistics that are updated in a network are those that the loss reads.

    Subclasses give ``_default_in_keys`` and ``_default_out_keys``, which stay settable as in every
    TorchRL loss, and ``_make_default_estimator``.

    Args:
        actor_network: an actor that has the members of ``protocol``, or a ``TensorDictSequential``
            of encoders and such an actor.
        protocol: :class:`~diffpolicy.actors.ChainActor` or :class:`~diffpolicy.actors.PathActor`.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.
        delay_actor: whether there is a target actor.

    Raises:
        TypeError: if the actor lacks members of the protocol.
        ValueError: for an unknown reduction, or a target actor with running statistics.
    """

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: nn.Module,
        *,
        protocol: type,
        reduction: str | None = None,
        delay_actor: bool = False,
    ) -> None:
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] | None = None
        super().__init__()
        actor_network = with_encoder(actor_network)
        if not isinstance(actor_network, protocol):
            raise TypeError(
                f"actor_network must offer the members of diffpolicy.actors.{protocol.__name__} "
                f"(see its documentation), got {type(actor_network).__name__}."
            )
        self.reduction = "mean" if reduction is None else reduction
        check_choice("reduction", self.reduction, ("mean", "sum", "none"))
        if delay_actor:
            check_no_statistics("delay_actor", actor_network)
        self.delay_actor = delay_actor
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        self.tensor_keys.action = self.chain_keys.action

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
            NotImplementedError: for any other estimator type, or a loss without values.
        """
        default = self.default_value_estimator
        if default is None:
            raise NotImplementedError(f"{type(self).__name__} estimates no values.")
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

    def _set_in_keys(self) -> None:
        """Called by TorchRL after ``set_keys``: the action is where the actor writes it."""
        written, wanted = self.chain_keys.action, self.tensor_keys.action
        if wanted != written:
            raise ValueError(
                f"set_keys(action={wanted!r}) does not go with an actor that writes its action to "
                f"{written!r}; build it with ActorKeys(action={wanted!r})."
            )

    # -- parts --------------------------------------------------------------------------------

    def _add_temperature(self, temperature: float | Temperature) -> None:
        """Register the temperature; ``target_entropy="auto"`` becomes a number here."""
        self.temperature = as_temperature(temperature)
        if isinstance(self.temperature, LearnedTemperature):
            self.temperature.resolve_target(self.actor_network)

    @property
    def log_alpha(self) -> Tensor:
        """The parameter of a learned temperature, where TorchRL's SACLoss has it.

        Raises:
            AttributeError: if the temperature is fixed.
        """
        if not self.temperature.learned:
            raise AttributeError("log_alpha is for a LearnedTemperature; this one is fixed.")
        return self.temperature.get_parameter("log_alpha")

    def _add_qvalue_network(
        self,
        networks: QNetworks,
        number: int | None,
        *,
        delay: bool,
        separate: bool,
        reduction: CriticReduction,
        loss_function: ValueLoss,
        heads: tuple[type[Head], ...] = (HLGauss,),
    ) -> QCritic:
        """Register ``qvalue_network`` and its parameters; the part that reads its values."""
        network = as_q_network(networks, number)
        critic = QCritic(
            network,
            reduction=reduction,
            loss_function=loss_function,
            heads=heads,
        )
        if delay:
            check_no_statistics("delay_qvalue", network)
        self.delay_qvalue = delay
        self.separate_losses = separate
        self.convert_to_functional(
            network,
            "qvalue_network",
            create_target_params=delay,
            compare_against=list(self.actor_network.parameters()) if separate else None,
        )
        return critic

    # -- reductions ---------------------------------------------------------------------------

    def _valid(self, rows: TensorDictBase, like: Tensor) -> Tensor | None:
        """Conjunction of the masks that apply to the loss, in the shape of ``like``."""
        valid = None
        for key in self._loss_mask_keys():
            mask = rows.get(key, None)
            if mask is not None:
                mask = self._expand_loss_mask(mask, like)
                valid = mask if valid is None else valid & mask
        return valid

    def _reduce(self, value: Tensor, rows: TensorDictBase, reduction: str | None = None) -> Tensor:
        """Reduce ``[*B, 1]``: masks and priority weights as in every TorchRL loss."""
        value = value.squeeze(-1)
        weights = None
        if self.use_prioritized_weights in (True, "auto"):
            # TorchRL's own look-up does not find nested keys.
            weights = rows.get(self.tensor_keys.priority_weight, None)
        if weights is not None:
            weights = self._expand_loss_mask(weights, value)
        return self._reduce_loss(value, rows, reduction=reduction, weights=weights)

    def _describe(self, value: Tensor, rows: TensorDictBase) -> Tensor:
        """A diagnostic from ``[*B, 1]``: its mean, or every element with ``reduction="none"``."""
        value = value.detach()
        if self.reduction == "none":
            valid = self._valid(rows, value)
            return (value if valid is None else torch.where(valid, value, 0.0)).squeeze(-1)
        return self._reduce(value, rows, "mean")

    def _enter(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The transitions, those of several agents as ``[*B, agents]``, see ``per_agent``."""
        key = self.tensor_keys.action
        action = tensordict.get(key, None)
        if action is None or action.shape[:-1] == tensordict.batch_size:
            return tensordict
        return per_agent(tensordict, key, action.shape[:-1])

    def _leave(self, entered: TensorDictBase, given: TensorDictBase) -> None:
        """Priorities of several agents, averaged over them, to where the transitions are from."""
        if entered is not given and not given.is_locked:
            error = entered[self.tensor_keys.priority]
            given.set(self.tensor_keys.priority, error.flatten(given.batch_dims).mean(-1))

    def _fit(
        self, distance: Tensor, diagnostics: Mapping[str, Tensor], rows: TensorDictBase
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and diagnostics of Q networks from ``[*B, 1]``; writes the priority."""
        write_priority(rows, self.tensor_keys.priority, diagnostics["td_error"])
        described = {key: self._describe(value, rows) for key, value in diagnostics.items()}
        return self._reduce(distance, rows), described

    def _output(
        self, terms: Mapping[str, Tensor], rows: TensorDictBase, *seen: TensorDictBase
    ) -> TensorDictBase:
        """The TensorDict that ``forward`` returns; scalars are repeated for every element."""
        batch_size = rows.batch_size if self.reduction == "none" else torch.Size([])
        out = {key: value.expand(batch_size) for key, value in terms.items()}
        networks = [f"{name}_params" for name in self._own_networks()]
        targets = [f"target_{name}" for name in networks]
        self._clear_weakrefs(rows, *seen, *networks, *targets)
        return TensorDict(out, batch_size)

    # -- networks -----------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, also of the networks."""
        super().train(mode)
        for network in self._own_networks().values():
            network.train(mode)
        return self

    def _own_networks(self) -> dict[str, nn.Module]:
        return {key: value for key, value in self.__dict__.items() if isinstance(value, nn.Module)}

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> Self:
        super()._apply(fn)
        for network in self._own_networks().values():
            network._apply(fn)
        self._tie_networks()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tie_networks()

    def _tie_networks(self) -> None:
        """Let ``<name>_params`` hold the tensors of the networks again."""
        for name, network in self._own_networks().items():
            params = getattr(self, f"{name}_params")
            for key, value in TensorDict.from_module(network).items(True, True):
                trained = isinstance(params.get(key), nn.Parameter)
                params.set(key, value if trained else value.data)


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Run ``network`` in evaluation mode and give every submodule its own mode back."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


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
