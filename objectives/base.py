"""What the losses of this package add to TorchRL's loss module."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.objectives.common import LossModule


class NetworkLoss(LossModule):
    """A loss module that takes its networks along.

    TorchRL keeps the parameters of a network in ``<name>_params``, a submodule, and the network
    itself outside of the module tree. ``train()``, ``to()``, ``copy.deepcopy`` and ``pickle`` then
    treat the two apart. Here they reach both, and both stay the same tensors: acting with
    ``loss.actor_network`` and estimating advantages always use what the optimiser trains, and
    statistics that are updated in a network are those that the loss reads.
    """

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
