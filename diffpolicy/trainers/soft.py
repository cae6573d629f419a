"""What soft actor-critic methods with a denoising chain share."""

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from diffpolicy.actors import DenoisingActor
from diffpolicy.trainers.off_policy_config import ChainConfig
from objectives import DiffSACLoss, DIMELoss, LearnedTemperature

BOUND_MARGIN = 2.0
"""The range of values spans this many times what a task's bounded rewards add up to."""


def delayed_update(
    loss: DIMELoss | DiffSACLoss, compile_mode: str | None
) -> Callable[[TensorDictBase, bool], dict[str, Tensor]]:
    """What :class:`OffPolicyParts` calls: all losses, or the critic's alone."""
    qvalue_loss = loss.qvalue_loss
    if compile_mode is not None:
        qvalue_loss = torch.compile(qvalue_loss, mode=compile_mode)
        loss.compile(mode=compile_mode)

    def update(batch: TensorDictBase, policy_moves: bool) -> dict[str, Tensor]:
        if policy_moves:
            return dict(loss(batch).items())
        value, diagnostics = qvalue_loss(batch)
        return {"loss_qvalue": value, **diagnostics}

    return update


def chain_temperature(actor: DenoisingActor, config: ChainConfig) -> float | LearnedTemperature:
    """The temperature that the options describe."""
    if not config.learn_temperature:
        return config.temperature
    target = config.target_entropy * actor.process.action_dim
    return LearnedTemperature(config.temperature, target)


def target_updates(loss: DIMELoss | DiffSACLoss, config: ChainConfig) -> Callable[[], None]:
    """What moves the target networks after an update, where there are any."""
    return SoftUpdate(loss, tau=config.tau).step if config.delay_critic else _nothing


def _nothing() -> None:
    pass
