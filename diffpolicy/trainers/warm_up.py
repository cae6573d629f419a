"""Random steps for methods that need more of them than the action."""

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
        self.acting = warm_up
        self.in_keys = list(policy.in_keys)
        self.out_keys = list(policy.out_keys)

    def finish(self) -> None:
        """Go over to the second policy."""
        self.acting = self.policy

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """What the acting policy writes."""
        return self.acting(tensordict)
