"""Soft actor-critic: what the off-policy methods share."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule, SoftUpdate

from diffpolicy.trainers.config.critic import DelayedCriticOptions, QHeadOptions
from diffpolicy.trainers.config.network import NetworkOptions
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.options import configuration
from diffpolicy.trainers.config.process import ProcessOptions
from diffpolicy.trainers.config.temperature import LearnableTemperatureOptions, TemperatureOptions
from diffpolicy.trainers.loops.optimizer import Optimizer
from objectives import DACERLoss, DenoisingRegressionLoss, DiffSACLoss, DiffusionQLLoss, DIMELoss

UpdatedLoss: TypeAlias = (
    DACERLoss | DIMELoss | DiffSACLoss | DenoisingRegressionLoss | DiffusionQLLoss
)


@configuration()
class SoftConfig(OffPolicyConfig, NetworkOptions, TemperatureOptions):
    """Soft actor-critic."""


@configuration(
    eval_policy="stochastic",
    actor_hidden_sizes=(128, 128),
    critic_hidden_sizes=(256, 256),
    lr_temperature=1e-3,
)
class ChainConfig(SoftConfig, ProcessOptions, QHeadOptions, DelayedCriticOptions):
    """Soft actor-critic with a denoising chain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_critic and self.critic_normalization == "batch":
            raise ValueError(
                "--delay-critic does not go with --critic-normalization batch, whose running "
                "statistics target networks leave behind; use layer or none, or --no-delay-critic."
            )


def optimizers(
    config: OffPolicyConfig,
    *,
    critic: str = "qvalue_network_params",
    temperature: str = "temperature",
    actor_grad_limit: float | None = None,
) -> dict[str, Optimizer]:
    """One Adam each for critics, policy and, if it is learned, the temperature.

    Args:
        config: its options.
        critic: the part of the loss that the critics are.
        temperature: the part of the loss that the temperature is.
        actor_grad_limit: see :class:`Optimizer`.
    """
    betas, eps = (config.adam_beta1, 0.999), config.adam_eps
    found = {
        "critic": Optimizer(critic, config.lr_critic, betas, eps),
        "actor": Optimizer(
            "actor_network_params",
            config.lr_actor,
            betas,
            eps,
            delayed=True,
            grad_limit=actor_grad_limit,
            # A shared encoder is the critics'.
            without=critic,
        ),
    }
    if isinstance(config, LearnableTemperatureOptions) and config.learn_temperature:
        rate = config.lr_actor if config.lr_temperature is None else config.lr_temperature
        found["alpha"] = Optimizer(temperature, rate, eps=eps, delayed=True, needs_rewards=True)
    return found


def delayed_update(
    loss: UpdatedLoss, compile_mode: str | None
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


def target_updates(loss: LossModule, config: DelayedCriticOptions) -> Callable[[], None]:
    """What moves the target networks after an update, where there are any."""
    delayed = any(getattr(loss, f"delay_{name}", False) for name in ("qvalue", "actor"))
    return TargetUpdate(loss, tau=config.tau).step if delayed else _nothing


def _nothing() -> None:
    pass


class TargetUpdate(SoftUpdate):
    """TorchRL's soft update of target networks, in one call for all of their parameters.

    The numbers are the same; ``SoftUpdate`` builds TensorDicts for every step, which on a CPU takes
    twenty times as long as the arithmetic.

    Args:
        loss: its targets are moved; on the device where it stays.
        tau: share of the networks in the new targets.
    """

    def __init__(self, loss: LossModule, *, tau: float) -> None:
        super().__init__(loss, tau=tau)
        self._leaves: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every target parameter by ``tau`` towards its network's."""
        if self._leaves is None:
            # A loss moves to its device before the first step.
            keys = list(self._sources.keys(True, True))
            targets = [self._targets[f"target_{name}", *rest] for name, *rest in keys]
            self._leaves = targets, [self._sources[key] for key in keys]
        targets, sources = self._leaves
        torch._foreach_lerp_(targets, sources, 1 - self.eps)
