"""The base of the losses that learn Q networks and a policy from replayed transitions."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, TensorDictParams, unravel_key
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from diffpolicy.actors import observation_keys
from objectives import functional as fn
from objectives.base import DiffusionLoss, evaluation_mode
from objectives.paths import sample_path
from objectives.q_critic import QCritic
from objectives.transitions import ReplayKeys, next_entry, return_discount


class ReplayLoss(DiffusionLoss):
    """Base of soft actor-critic losses: keys, discount, targets, and the temperature's loss.

    Subclasses add Q networks and a temperature, and have an ``actor_loss`` that returns the
    ``entropy`` of the policy.
    """

    _AcceptedKeys = ReplayKeys
    default_keys = ReplayKeys
    tensor_keys: ReplayKeys
    default_value_estimator = ValueEstimators.TD0

    critic: QCritic
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def _make_default_estimator(self, **hyperparams: Any) -> TD0Estimator:
        # Only its discount is used.
        defaults = {"gamma": 0.99, "device": self._default_device}
        return TD0Estimator(value_network=None, **{**defaults, **hyperparams})

    def alpha_loss(self, tensordict: TensorDictBase, entropy: Tensor) -> Tensor:
        """``T stopgrad(H - H_target)``.

        Args:
            tensordict: transitions ``[*B]``; masks and priority weights are read.
            entropy: of ``actor_loss`` ``[*B, 1]``.
        """
        return self._reduce(self.temperature.loss(entropy), tensordict)


class ActionCriticLoss(ReplayLoss):
    """Base of the losses whose critics value actions.

    They are DIME, DACER, DiffusionQL and the regression family.
    """

    #: The diagnostic of ``actor_loss`` that a learned temperature follows.
    followed_entropy: str = "entropy"

    @abstractmethod
    def qvalue_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""

    @abstractmethod
    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the policy, and diagnostics ``[*B, 1]``."""

    @dispatch
    def forward(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> TensorDictBase:
        """All loss terms and diagnostics of transitions ``[*B]``, see the class."""
        transitions = self._enter(tensordict)
        qvalue, diagnostics = self.qvalue_loss(transitions, draws=draws)
        self._leave(transitions, tensordict)
        actor, described = self.actor_loss(transitions, draws=draws)
        out = {"loss_qvalue": qvalue, "loss_actor": actor, **diagnostics}
        if self.temperature.learned:
            followed = described[self.followed_entropy]
            out["loss_alpha"] = self.alpha_loss(transitions, followed)
        out |= {key: self._describe(value, transitions) for key, value in described.items()}
        out["alpha"] = self.temperature()
        return self._output(out, transitions, tensordict)

    def _transition_keys(self, observation: Sequence[NestedKey]) -> list[NestedKey]:
        """What a loss on actions reads of transitions with these observations."""
        keys = self.tensor_keys
        following = (*observation, keys.reward, keys.terminated)
        return [*observation, keys.action, *(unravel_key(("next", key)) for key in following)]

    def _value_target(self, transitions: TensorDictBase, next_value: Tensor) -> Tensor:
        """``r + gamma (1 - terminated) Q(s', a')`` ``[*B, 1]``, without an entropy."""
        reward = next_entry(transitions, self.tensor_keys.reward)
        return fn.soft_target(
            next_value,
            reward,
            next_entry(transitions, self.tensor_keys.terminated),
            torch.zeros_like(next_value),
            discount=return_discount(self.value_estimator, transitions, reward),
            temperature=self.temperature(),
        )

    @torch.no_grad()
    def sample_actions(
        self,
        rows: TensorDictBase,
        number: int,
        noise: Tensor | None = None,
        *,
        delayed: bool = False,
    ) -> Tensor:
        """Actions of the policy for rows ``[*B]``, ``[number, *B, A]``.

        Args:
            rows: have the observation keys.
            number: of actions for each row.
            noise: ``[number, *B, N+1, A]``; None draws it.
            delayed: whether the target actor acts.
        """
        observed = rows.select(*observation_keys(self.actor_network), strict=False)
        several = observed.expand(number, *observed.batch_size)
        params = self.target_actor_network_params if delayed else self.actor_network_params
        with params.to_module(self.actor_network, preserve_module_state=False):
            return self.actor_network.sample_action(several, noise=noise)

    def each_value(self, rows: TensorDictBase, action: Tensor) -> Tensor:
        """Values ``[*R, E, 1]`` of actions ``[*R, A]``, with a gradient in the actions only."""
        inputs = self.critic.action_inputs(rows, self.tensor_keys.action, action)
        with evaluation_mode(self.qvalue_network):
            params = self.qvalue_network_params.detach()
            return self.critic.evaluate(params, inputs, self.tensor_keys).value

    @torch.no_grad()
    def _entropies(self, transitions: TensorDictBase, noise: Tensor | None) -> dict[str, Tensor]:
        """``entropy`` and ``entropy_bound`` ``[*B, 1]`` of whole chains, from their noise."""
        path = sample_path(self.actor_network, transitions, noise)
        bound = fn.entropy_bound(path.running_cost, path.terminal_cost)
        return {"entropy": -path.running_cost, "entropy_bound": bound}
