"""Optimisers of parts of a loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.objectives import LossModule


@dataclass(frozen=True)
class Optimizer:
    """Adam for a part of the loss.

    Attributes:
        part: name of the loss's submodule, or of one of its own parameters, that it moves.
        lr: learning rate.
        betas: Adam's coefficients.
        eps: Adam's number beside the root of the second moment.
        delayed: whether it moves only when the policy does.
        interval: it moves at the first of so many updates each.
        needs_rewards: whether it waits for the first reward that differs from zero.
        without: part whose parameters it leaves alone, which are shared with it.
        grad_limit: NaN in gradients becomes 0 and every entry is clipped to this size; None leaves
            gradients alone.
        norm_limit: gradients are scaled down to this norm, all together; None leaves them alone.
    """

    part: str
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    delayed: bool = False
    interval: int = 1
    needs_rewards: bool = False
    grad_limit: float | None = None
    norm_limit: float | None = None
    without: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What Adam is told."""
        return {"lr": self.lr, "betas": self.betas, "eps": self.eps}

    def parameters(self, loss: LossModule) -> list[nn.Parameter]:
        """The parameters of ``loss`` that it moves."""
        part = getattr(loss, self.part)
        if isinstance(part, nn.Parameter):
            return [part]
        others = () if self.without is None else getattr(loss, self.without).parameters()
        taken = {id(parameter) for parameter in others}
        return [parameter for parameter in part.parameters() if id(parameter) not in taken]

    def build(self, loss: LossModule) -> torch.optim.Adam:
        """The optimiser of these parameters."""
        return torch.optim.Adam(self.parameters(loss), **self.settings, fused=True)

    def treat_gradients(self, loss: LossModule) -> dict[str, Tensor]:
        """Clip the gradients; return their ``norm`` before it and their number of ``nans``."""
        parameters = self.parameters(loss)
        if self.norm_limit is not None:
            return {"norm": torch.nn.utils.clip_grad_norm_(parameters, self.norm_limit)}
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.grad_limit is None:
            return {"norm": torch.nn.utils.get_total_norm(grads)}
        nans = torch.stack([grad.isnan().sum() for grad in grads]).sum()
        norm = torch.nn.utils.get_total_norm([grad.nan_to_num(nan=0.0) for grad in grads])
        treat_gradients(grads, self.grad_limit)
        return {"norm": norm, "nans": nans.float()}


def treat_gradients(grads: list[Tensor], limit: float) -> None:
    """Replace NaN by 0 and clip every entry to ``[-limit, limit]``, in place (arXiv 2502.02316).

    Examples:
        >>> grad = torch.tensor([10.0, 0.5, -3.0, float("nan")])
        >>> treat_gradients([grad], 1.0)
        >>> grad
        tensor([ 1.0000,  0.5000, -1.0000,  0.0000])
    """
    for grad in grads:
        grad.nan_to_num_(nan=0.0).clamp_(-limit, limit)
