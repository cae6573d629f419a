"""Entropy terms of single denoising steps."""

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from diffpolicy.actors.keys import ActorKeys, required
from diffpolicy.actors.protocol import ChainActor, observation_keys


class StepEntropy:
    """Entropy terms of rows of the denoising MDP; part of :class:`DenoisingMDP`."""

    actor: ChainActor
    denoising_steps: int

    @property
    def keys(self) -> ActorKeys:
        """Names of the entries of chains and rows."""
        return self.actor.keys

    @property
    def observation_keys(self) -> list[NestedKey]:
        """The entries that the actor observes."""
        return observation_keys(self.actor)

    def is_last(self, rows: TensorDictBase) -> Tensor:
        """Whether rows are the last steps of their chains, boolean ``[*R, 1]``."""
        return required(rows, self.keys.step) == self.denoising_steps - 1

    def squash_log_det(self, rows: TensorDictBase) -> Tensor:
        """``log |d tanh(x_N)|`` of rows that are last steps, 0 of others, ``[*R, 1]``."""
        log_det = self.actor.squash_log_det(rows[self.keys.next_latent])  # type: ignore[attr-defined]
        return torch.where(self.is_last(rows), log_det, 0.0)

    def prior_log_prob(self, rows: TensorDictBase) -> Tensor:
        """``log p(x_0)`` of rows that are first steps, 0 of others, ``[*R, 1]``."""
        log_prob = self.actor.prior_log_prob(rows[self.keys.latent])  # type: ignore[attr-defined]
        return torch.where(rows[self.keys.step] == 0, log_prob, 0.0)

    def entropy_bound(self, rows: TensorDictBase) -> Tensor:
        """An estimate from single steps of the bound on the action's entropy, ``[*R, 1]``.

        ``-N (LR_n - 1[n = N-1] log |d tanh(x_N)| + 1[n = 0] log p(x_0))``, whose mean over the
        steps of a chain is ``-(sum_n LR_n - log |d tanh| + log p(x_0))`` (arXiv 2502.02316), for
        actions mapped to [-1, 1]. Needs :attr:`bounds_entropy`.

        Args:
            rows: ``latent``, ``next_latent``, ``step`` and ``log_ratio``.
        """
        cost = rows[self.keys.log_ratio] - self.squash_log_det(rows) + self.prior_log_prob(rows)
        return -self.denoising_steps * cost

    @property
    def bounds_entropy(self) -> bool:
        """Whether the actor has what :meth:`entropy_bound` needs."""
        return all(hasattr(self.actor, name) for name in ("squash_log_det", "prior_log_prob"))
