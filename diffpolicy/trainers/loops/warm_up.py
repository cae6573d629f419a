"""Random steps for methods that need more of them than the action."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase


class WarmUpPolicy(TensorDictModuleBase):
    """Acts with one policy until :meth:`finish` is called, and with another one from then on.

    Args:
        warm_up: the first policy.
        policy: the second one, which reads the same keys.
    """

    def __init__(self, warm_up: TensorDictModuleBase, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.policy = policy
        self.warm_up = warm_up
        # A buffer, because workers are sent parameters and buffers and nothing else.
        device = next(policy.parameters()).device
        self.register_buffer("finished", torch.zeros((), dtype=torch.bool, device=device))
        self.in_keys = list(policy.in_keys)
        self.out_keys = list(policy.out_keys)

    def finish(self) -> None:
        """Go over to the second policy."""
        self.finished.fill_(True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """What the acting policy writes."""
        return (self.policy if self.finished else self.warm_up)(tensordict)
