"""Names of the entries that diffusion actors read and write."""

from dataclasses import dataclass

from tensordict import NestedKey, TensorDictBase
from torch import Tensor


@dataclass(frozen=True)
class ActorKeys:
    """TensorDict keys of a diffusion actor; any of them may be nested.

    Attributes:
        action: squashed action in environment units ``[*B, A]``.
        latents: chain ``x_0 .. x_N`` ``[*B, N+1, A]``.
        log_prob: ``log q(x_{n+1} | x_n, s)`` per step ``[*B, N, 1]``.
        log_ratio: ``log q - log p`` per step ``[*B, N, 1]``.
        kernel_mean: mean of the denoising kernel per step ``[*B, N, A]``.
        kernel_std: std of the denoising kernel per step ``[*B, N, A]``.
        entropy_bound: one-sample estimate of the lower bound on the entropy of the squashed
            action, measured in [-1, 1] units, ``[*B, 1]``.
        latent: ``x_n`` of a denoising-MDP row ``[*B, A]``.
        next_latent: ``x_{n+1}`` of a denoising-MDP row ``[*B, A]``.
        step: ``n`` of a denoising-MDP row, integer ``[*B, 1]``.
    """

    action: NestedKey = "action"
    latents: NestedKey = "latents"
    log_prob: NestedKey = "log_prob"
    log_ratio: NestedKey = "log_ratio"
    kernel_mean: NestedKey = "kernel_mean"
    kernel_std: NestedKey = "kernel_std"
    entropy_bound: NestedKey = "entropy_bound"
    latent: NestedKey = "latent"
    next_latent: NestedKey = "next_latent"
    step: NestedKey = "step"

    @property
    def per_step(self) -> tuple[NestedKey, ...]:
        """Entries with one value per denoising step, the same key in chains and rows."""
        return (self.log_prob, self.log_ratio, self.kernel_mean, self.kernel_std)

    @property
    def chain(self) -> tuple[NestedKey, ...]:
        """Everything that describes a chain."""
        return (self.latents, *self.per_step)


def required(tensordict: TensorDictBase, key: NestedKey, hint: str = "") -> Tensor:
    """The entry ``key``.

    Raises:
        KeyError: naming the missing key, the keys that are there and ``hint``.
    """
    value = tensordict.get(key, None)
    if value is None:
        present = sorted(map(str, tensordict.keys(True, True)))
        raise KeyError(f"key {key!r} is missing from the TensorDict, which has {present}{hint}.")
    return value
