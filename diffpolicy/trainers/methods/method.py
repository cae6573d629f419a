"""What a training method is: its options, its parts, and how they are trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torchrl.envs import EnvBase

from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.loops.base import RLModule
from diffpolicy.trainers.loops.off_policy import OffPolicyModule, OffPolicyParts
from diffpolicy.trainers.loops.on_policy import OnPolicyModule, OnPolicyParts

Kind = Literal["on-policy", "off-policy"]


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        config: its options; a class that derives from :class:`OnPolicyConfig` or from
            :class:`OffPolicyConfig`, which decides how it is trained, and has a name, ``method``.
        build: builds networks and loss for an environment (only its specs are read), a
            configuration of this class, and a device; returns :class:`OnPolicyParts` or
            :class:`OffPolicyParts`.
        summary: what it is, in one line.
    """

    config: type[RunConfig]
    build: Callable[[EnvBase, Any, torch.device], OnPolicyParts | OffPolicyParts]
    summary: str

    @property
    def name(self) -> str:
        """The name in results, checkpoints and the registry."""
        return self.config.method

    @property
    def kind(self) -> Kind:
        """Whether it trains on rollouts of the current policy or from a replay buffer."""
        return "on-policy" if issubclass(self.config, OnPolicyConfig) else "off-policy"

    def module(self, config: Any, device: torch.device) -> RLModule:
        """The Lightning module that trains it.

        Args:
            config: a configuration of the class ``self.config``.
            device: where to train.

        Raises:
            ValueError: for an environment that does not exist or does not suit the method.
        """
        module_class: type[Any] = OnPolicyModule if self.kind == "on-policy" else OffPolicyModule
        module: RLModule = module_class(config, self.build, device)
        return module
