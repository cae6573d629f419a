"""How ensembles of Q networks are read and trained."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import (
    EnsembleModule,
    TensorDictModule,
    TensorDictModuleBase,
)
from torch import Tensor, nn

from diffpolicy.actors.keys import required
from diffpolicy.networks import CategoricalSupport, GaussianHead, HLGauss
from diffpolicy.sde import Gaussian
from objectives import functional as fn
from objectives.checks import check_choice
from objectives.q_heads import Head, find_head, writes_ensemble_first

CriticReduction = Literal["mean", "min"]
QNetworks: TypeAlias = TensorDictModuleBase | Sequence[TensorDictModuleBase] | nn.ModuleList


class QKeys(Protocol):
    """Where Q networks write."""

    state_action_value: NestedKey
    state_action_value_logits: NestedKey


class QValues(NamedTuple):
    """Output of ``E`` critics: values ``[*B, E, 1]``, and what a head reads ``[*B, E, K]``."""

    value: Tensor
    logits: Tensor | None

    def detach(self) -> "QValues":
        """The same without gradient."""
        return QValues(self.value.detach(), None if self.logits is None else self.logits.detach())


class QStack(TensorDictModuleBase):
    """Several Q networks as one, which writes their values ``[*B, 1]`` as ``[*B, E, 1]``.

    Args:
        networks: modules with the same ``out_keys``.

    Raises:
        ValueError: without networks, or if they write different entries.
    """

    def __init__(self, networks: Sequence[TensorDictModuleBase]) -> None:
        super().__init__()
        written = [list(network.out_keys) for network in networks]
        if not written or any(keys != written[0] for keys in written):
            raise ValueError(
                f"qvalue_network must be one or more networks that write the same, got {written}."
            )
        self.networks = nn.ModuleList(networks)
        self.in_keys = list(dict.fromkeys(key for each in networks for key in each.in_keys))
        self.out_keys = written[0]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the stacked entries ``[*B, E, F]``."""
        networks: Iterable[Any] = self.networks
        outs = [network(tensordict.select(*network.in_keys)) for network in networks]
        for key in self.out_keys:
            tensordict.set(key, torch.stack([out.get(key) for out in outs], -2))
        return tensordict


class QCritic:
    """An ensemble of ``E`` Q networks: layout, head, reduction and loss.

    The parameters belong to a loss and are passed to every call; this object has none. Heads are
    scalar, categorical (:class:`~diffpolicy.networks.CategoricalSupport`),
    :class:`~diffpolicy.networks.HLGauss` or :class:`~diffpolicy.networks.GaussianHead`, whichever
    a submodule of the network is.

    Args:
        network: result of :func:`as_q_network`.
        reduction: ``"mean"`` or, not for categorical heads, ``"min"``, over the critics.
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        heads: those that the loss can train, beside scalar critics.

    Raises:
        ValueError: for arguments that are unknown or do not go together, or several heads.
    """

    def __init__(
        self,
        network: TensorDictModule,
        *,
        reduction: CriticReduction,
        loss_function: fn.ValueLoss,
        heads: tuple[type[Head], ...] = (CategoricalSupport, HLGauss),
    ) -> None:
        check_choice("loss_function", loss_function, ("l1", "l2", "smooth_l1"))
        check_choice("critic_reduction", reduction, ("mean", "min"))
        self.network = network
        self.head = find_head(network)
        self.reduction = reduction
        self.loss_function = loss_function
        self._ensemble_first = writes_ensemble_first(network)
        if self.head is not None and not isinstance(self.head, heads):
            works = " or ".join(["a scalar head", *(head.__name__ for head in heads)])
            raise ValueError(
                f"qvalue_network has a {type(self.head).__name__}, which this loss does not train; "
                f"use {works}."
            )
        if self.atoms is not None and reduction == "min":
            raise ValueError(
                "critic_reduction='min' needs scalar critics; for categorical ones use 'mean'."
            )

    @property
    def atoms(self) -> CategoricalSupport | None:
        """The atoms of a categorical head, else None."""
        return self.head if isinstance(self.head, CategoricalSupport) else None

    @property
    def bins(self) -> HLGauss | None:
        """The bins of an HL-Gauss head, else None."""
        return self.head if isinstance(self.head, HLGauss) else None

    @property
    def gaussian(self) -> GaussianHead | None:
        """The Gaussian head, else None."""
        return self.head if isinstance(self.head, GaussianHead) else None

    def action_inputs(self, rows: TensorDictBase, key: NestedKey, action: Tensor) -> TensorDictBase:
        """What critics ``Q(s, a)`` read, with another action; never the caller's TensorDict."""
        return rows.select(*(k for k in self.network.in_keys if k != key)).set(key, action)

    def evaluate(self, params: TensorDictBase, inputs: TensorDictBase, keys: QKeys) -> QValues:
        """Values of inputs ``[*B]``, in single precision at least.

        Raises:
            KeyError: if the network does not write the entries that ``keys`` names.
            ValueError: if their shape is not that of the network's layout.
        """
        with params.to_module(self.network, preserve_module_state=False):
            out = self.network(inputs)
        batch = inputs.batch_size
        value = self.members(out, keys.state_action_value, batch)
        if value.shape[-1] != 1:
            raise ValueError(
                f"qvalue_network must write {keys.state_action_value!r} with one value per row and "
                f"critic, got {value.shape[-1]}; a critic with several outputs needs a head."
            )
        if self.head is None:
            return QValues(value, None)
        return QValues(value, self.members(out, keys.state_action_value_logits, batch))

    def members(self, out: TensorDictBase, key: NestedKey, batch: torch.Size) -> Tensor:
        """``[*B, E, F]`` from what the network wrote; its layout is known, never guessed.

        Half precision, as of autocast, becomes single: targets and losses need it.
        """
        value = required(out, key, "; rename keys with loss.set_keys()")
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        if self._ensemble_first and value.shape[1:-1] == batch:
            return value.movedim(0, -2)
        if not self._ensemble_first and value.shape[:-1] == batch:
            return value.unsqueeze(-2)
        if not self._ensemble_first and value.shape[:-2] == batch:
            return value
        wanted = "[E, *B, F], as EnsembleModules do" if self._ensemble_first else "[*B, E, F]"
        raise ValueError(
            f"qvalue_network must write {key!r} as {wanted} (or [*B, F] for one critic) with batch "
            f"{list(batch)}, got shape {list(value.shape)}."
        )

    def current_and_next(
        self,
        current: TensorDictBase,
        coming: TensorDictBase,
        keys: QKeys,
        params: TensorDictBase,
        target_params: TensorDictBase | None,
    ) -> tuple[QValues, QValues]:
        """Values of critic inputs ``[*B]``, and of next ones ``[M, *B]`` without gradient.

        Without target parameters both go through the critic in one forward, so that batch
        statistics cover both.
        """
        if target_params is not None:
            with torch.no_grad():
                next_values = self.evaluate(target_params, coming, keys)
            return self.evaluate(params, current, keys), next_values
        joint = TensorDict(batch_size=[1 + coming.shape[0], *current.batch_size])
        for key in self.network.in_keys:
            joint.set(key, torch.cat((current[key].unsqueeze(0), coming[key])))
        value, logits = self.evaluate(params, joint, keys)
        if logits is None:
            return QValues(value[0], None), QValues(value[1:].detach(), None)
        return QValues(value[0], logits[0]), QValues(value[1:], logits[1:]).detach()

    def over_critics(self, value: Tensor) -> Tensor:
        """Mean or minimum ``[*B, 1]`` over the critics of ``[*B, E, 1]``."""
        return value.amin(-2) if self.reduction == "min" else value.mean(-2)

    def distribution(self, values: QValues) -> Gaussian:
        """Mean and std ``[*B, 1]`` of Gaussian critics: of the smaller mean, or their means."""
        std = self.std(values)
        if self.reduction == "mean":
            return Gaussian(values.value.mean(-2), std.mean(-2))
        smallest = values.value.argmin(-2, keepdim=True)
        at = (value.take_along_dim(smallest, -2).squeeze(-2) for value in (values.value, std))
        return Gaussian(*at)

    def std(self, values: QValues) -> Tensor:
        """Standard deviations ``[*B, E, 1]`` of Gaussian critics."""
        assert self.gaussian is not None
        assert values.logits is not None
        return self.gaussian.std(values.logits)

    def distance(self, values: QValues, target: Tensor) -> Tensor:
        """Loss ``[*B, 1]`` of all critics against scalar targets ``[*B, 1]``."""
        targets = target.unsqueeze(-2)
        if self.bins is not None and values.logits is not None:
            return self.bins.loss(values.logits, targets).sum(-2)
        wanted = targets.expand_as(values.value)
        return fn.value_distance(values.value, wanted, self.loss_function).sum(-2)

    @torch.no_grad()
    def diagnostics(self, values: QValues, target: Tensor) -> dict[str, Tensor]:
        """``q_value``, ``target_value``, ``td_error`` (of the worst critic) ``[*B, 1]``.

        With HL-Gauss also ``value_clip_fraction``, whether the target is outside of the bins, and
        with a Gaussian head ``value_std``.
        """
        error = (values.value - target.unsqueeze(-2)).abs().amax(-2)
        found = {"q_value": values.value.mean(-2), "target_value": target, "td_error": error}
        if self.bins is not None:
            found["value_clip_fraction"] = self.bins.outside(target).to(target)
        if self.gaussian is not None:
            found["value_std"] = self.std(values).mean(-2)
        return found

    @property
    def diagnostic_keys(self) -> list[NestedKey]:
        """Names of the critic's diagnostics."""
        of_head = [] if self.bins is None else ["value_clip_fraction"]
        of_head += [] if self.atoms is None else ["value_clip_fraction", "critic_entropy"]
        of_head += [] if self.gaussian is None else ["value_std"]
        return ["q_value", "target_value", "td_error", *of_head]


def as_q_network(networks: QNetworks, num_qvalue_nets: int | None = None) -> TensorDictModuleBase:
    """One module of what a loss is given as its Q networks.

    Args:
        networks: one module that writes values ``[*B, E, 1]`` or ``[*B, 1]``, a tensordict
            ``EnsembleModule`` (``[E, *B, 1]``), or a list of modules that write ``[*B, 1]``.
        num_qvalue_nets: make so many networks of one that writes ``[*B, 1]``: itself, and copies
            with parameters drawn anew. None takes what is given.

    Raises:
        TypeError: if a network is no TensorDict module.
        ValueError: for a number that does not fit, or copies that cannot be initialised.
    """
    several = isinstance(networks, (nn.ModuleList, Sequence))
    members: list[Any] = list(networks) if several else [networks]
    for network in members:
        if not (isinstance(network, nn.Module) and hasattr(network, "out_keys")):
            raise TypeError(
                "qvalue_network must be a TensorDictModule or a list of them, got "
                f"{type(network).__name__}."
            )
    if several:
        if num_qvalue_nets not in (None, len(members)):
            raise ValueError(
                f"num_qvalue_nets={num_qvalue_nets} does not go with a list of {len(members)} "
                "networks; leave it out."
            )
        return QStack(members)
    if num_qvalue_nets is None:
        return _without_template(members[0])
    if num_qvalue_nets < 1 or writes_ensemble_first(members[0]):
        raise ValueError(
            f"num_qvalue_nets={num_qvalue_nets} needs at least 1, and a network of one critic, got "
            f"{type(members[0]).__name__}."
        )
    return QStack([members[0], *(_redrawn(members[0]) for _ in range(num_qvalue_nets - 1))])


def _without_template(network: TensorDictModuleBase) -> TensorDictModuleBase:
    """The network; what an EnsembleModule copied its critics from takes no part in training."""
    for module in network.modules():
        if isinstance(module, EnsembleModule):
            module.module.requires_grad_(False)
    return network


def _redrawn(network: TensorDictModuleBase) -> TensorDictModuleBase:
    """A copy with parameters of its own; the head, which has none, is shared."""
    head = find_head(network)
    copied = copy.deepcopy(network, {} if head is None else {id(head): head})
    fresh = {id(p) for module in copied.modules() for p in _reset(module)}
    if any(id(p) not in fresh for p in copied.parameters()):
        raise ValueError(
            "num_qvalue_nets copies a network whose parameters all come from modules with "
            f"reset_parameters(), which {type(network).__name__} has not; pass a list of networks."
        )
    return copied


def _reset(module: nn.Module) -> list[nn.Parameter]:
    """Draw the parameters of a module anew; those that this reaches."""
    reset: Any = getattr(module, "reset_parameters", None)
    if reset is None:
        return []
    reset()
    return list(module.parameters())
