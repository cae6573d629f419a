"""The base of the losses that learn Q networks and a policy from replayed transitions."""

from typing import Any

from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from objectives.base import DiffusionLoss
from objectives.transitions import ReplayKeys


class ReplayLoss(DiffusionLoss):
    """Base of soft actor-critic losses: their keys, their discount, and the temperature's loss.

    Subclasses add Q networks and a temperature, and have an ``actor_loss`` that returns the
    ``entropy`` of the policy.
    """

    _AcceptedKeys = ReplayKeys
    default_keys = ReplayKeys
    tensor_keys: ReplayKeys
    default_value_estimator = ValueEstimators.TD0

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
