"""What losses with ensembles of Q networks share."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from diffpolicy.actors.keys import required
from objectives import functional as fn
from objectives.chain_loss import ChainLoss, check_no_statistics
from objectives.checks import check_choice
from objectives.temperature import Temperature, as_temperature

CriticReduction = Literal["mean", "min"]


class QValues(NamedTuple):
    """What ``E`` critics say: values ``[*B, E, 1]``, and logits ``[*B, E, K]`` if categorical."""

    value: Tensor
    logits: Tensor | None


class QLoss(ChainLoss):
    """Base of losses with an ensemble of Q networks and a temperature.

    Args:
        actor_network: an actor that has the members of ``_actor_protocol``.
        critic_network: writes ``state_action_value`` ``[*B, E, 1]`` for ``E`` critics
            (``[*B, 1]`` for one) and, if categorical, ``state_action_value_logits`` ``[*B, E, K]``.
        temperature: a number or a Temperature.
        categorical: whether the critic writes logits.
        delay_critic: whether next values come from a target network.
        critic_reduction: ``"mean"`` or ``"min"`` over the critics.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        delay_actor: whether there is a target actor.

    Raises:
        TypeError: if the actor lacks members of the protocol, or for a bad temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable keys; those of observation, action and chain are the actor's."""

        state_action_value: NestedKey = "state_action_value"
        state_action_value_logits: NestedKey = "state_action_value_logits"
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0

    critic_network: TensorDictModule
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: TensorDictModule,
        *,
        temperature: float | Temperature,
        categorical: bool,
        delay_critic: bool,
        critic_reduction: CriticReduction,
        loss_critic_type: fn.ValueLoss,
        separate_losses: bool,
        reduction: str,
        delay_actor: bool = False,
    ) -> None:
        super().__init__(actor_network, reduction=reduction, delay_actor=delay_actor)
        check_choice("loss_critic_type", loss_critic_type, ("l1", "l2", "smooth_l1"))
        check_choice("critic_reduction", critic_reduction, ("mean", "min"))
        if delay_critic:
            check_no_statistics("delay_critic", critic_network)
        shared = list(actor_network.parameters()) if separate_losses else None
        self.convert_to_functional(
            critic_network,
            "critic_network",
            create_target_params=delay_critic,
            compare_against=shared,
        )
        self.temperature = as_temperature(temperature)
        self.categorical = categorical
        self.delay_critic = delay_critic
        self.critic_reduction = critic_reduction
        self.loss_critic_type = loss_critic_type
        self.separate_losses = separate_losses

    def _make_default_estimator(self, **hyperparams: Any) -> Any:
        # Only its discount is used. Returns of several steps come from TorchRL's
        # MultiStepTransform, whose steps_to_next_obs sets the power of gamma.
        defaults = {"gamma": 0.99, "device": self._default_device}
        return TD0Estimator(value_network=None, **{**defaults, **hyperparams})

    def _evaluate(self, params: TensorDictBase, inputs: TensorDictBase) -> QValues:
        keys, batch = self.tensor_keys, inputs.batch_size
        with params.to_module(self.critic_network, preserve_module_state=False):
            out = self.critic_network(inputs)
        value = out[keys.state_action_value].reshape(*batch, -1, 1)
        if not self.categorical:
            return QValues(value, None)
        logits = out[keys.state_action_value_logits]
        return QValues(value, logits.reshape(*batch, -1, logits.shape[-1]))

    def _current_and_next(
        self, current: TensorDictBase, coming: TensorDictBase
    ) -> tuple[QValues, QValues]:
        """Values of critic inputs ``[*B]``, and of next ones ``[M, *B]`` without gradient.

        Without a target network both go through the critic in one forward, so that batch
        statistics cover both.
        """
        if self.delay_critic:
            with torch.no_grad():
                next_values = self._evaluate(self.target_critic_network_params, coming)
            return self._evaluate(self.critic_network_params, current), next_values
        joint = TensorDict(batch_size=[1 + coming.shape[0], *current.batch_size])
        for key in self.critic_network.in_keys:
            joint.set(key, torch.cat((current[key].unsqueeze(0), coming[key])))
        value, logits = self._evaluate(self.critic_network_params, joint)
        if logits is None:
            return QValues(value[0], None), QValues(value[1:].detach(), None)
        return QValues(value[0], logits[0]), QValues(value[1:].detach(), logits[1:].detach())

    def _over_critics(self, value: Tensor) -> Tensor:
        """Mean or minimum ``[*B, 1]`` over the critics of ``[*B, E, 1]``."""
        return value.amin(-2) if self.critic_reduction == "min" else value.mean(-2)

    def _next_entry(self, tensordict: TensorDictBase, name: str) -> Tensor:
        hint = "; collect transitions with `next`, or rename keys with loss.set_keys()"
        return required(tensordict["next"], getattr(self.tensor_keys, name), hint)

    def _discount(self, tensordict: TensorDictBase, like: Tensor) -> Tensor:
        """Gamma, a scalar or ``[*B, 1]`` where the buffer holds returns of several steps."""
        estimator = self.value_estimator
        steps = tensordict.get(estimator.tensor_keys.steps_to_next_obs, None)
        gamma: Tensor = estimator.gamma
        return gamma if steps is None else gamma ** steps.view_as(like)

    @staticmethod
    def _value_diagnostics(value: Tensor, target: Tensor) -> dict[str, Tensor]:
        """``q_value``, ``target_value`` and ``td_error`` ``[*B, 1]`` of values ``[*B, E, 1]``."""
        error = (value - target.unsqueeze(-2)).abs().amax(-2)
        return {"q_value": value.detach().mean(-2), "target_value": target, "td_error": error}

    def _write_priority(self, tensordict: TensorDictBase, error: Tensor) -> None:
        if not tensordict.is_locked:
            tensordict.set(self.tensor_keys.priority, error.squeeze(-1))
