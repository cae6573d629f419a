"""Inputs of DiffWPO: rows, rollouts with returns, and transitions from replay."""

from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from diffpolicy.actors.keys import required
from objectives.base import DiffusionLoss
from objectives.chain_checks import MISLED, inspect_chains
from objectives.draws import Draws
from objectives.replayed_steps import REPLAY_DRAWS, ReplayedSteps, detached
from objectives.row_inputs import RowInputs
from objectives.wasserstein_step import WassersteinStep


class WPOBatch(NamedTuple):
    """One call: rows to train on, what averages over sampled steps belong to, and draws."""

    rows: TensorDictBase
    given: TensorDictBase
    draws: Draws
    misled: Tensor | None
    replayed: bool


class WPOInputs(RowInputs, DiffusionLoss):
    """From whatever DiffWPO is called on to rows; the base of :class:`DiffWPOLoss`."""

    replayed: ReplayedSteps
    wasserstein: WassersteinStep

    @property
    def row_keys(self) -> list[NestedKey]:
        """Entries that the loss reads from rows; ``in_keys`` are those of transitions."""
        chain = self.chain_keys
        misled = [MISLED] if self.check_chains == "report" else []
        row = [chain.latent, chain.next_latent, chain.step, *self._behaviour_keys(), *misled]
        return [*self.mdp.observation_keys, *row, self.tensor_keys.value_target]

    def _behaviour_keys(self) -> list[NestedKey]:
        """Entries that describe the behaviour's kernels, where no target actor does."""
        keys = self.chain_keys
        return [] if self.delay_actor else [keys.kernel_mean, keys.kernel_std]

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on rows or transitions, for ``draws``.

        On rows ``[*B]``: ``proposal`` ``[*B, A]``, and with ``kl_samples`` also ``divergence``
        ``[*B, M, A]``. On rollouts with returns, the same of their rows ``[*B, N]``. On replayed
        transitions ``[*B]`` as :meth:`DiffSACLoss.draw`, and ``divergence``
        ``[*B, kappa, M, A]``. All are optional in ``draws``.
        """
        if self._is_replayed(tensordict):
            draws = self.replayed.draw(self._enter(tensordict))
        else:
            rows = self._estimated_rows(tensordict)
            noise = torch.randn_like(rows[self.chain_keys.latent])
            draws = TensorDict({"proposal": noise}, rows.batch_size)
        if self.wasserstein.kl_samples is not None:
            proposal = draws["proposal"].unsqueeze(-2)
            repeated = proposal.expand(
                *proposal.shape[:-2], self.wasserstein.kl_samples, proposal.shape[-1]
            )
            draws.set("divergence", torch.randn_like(repeated))
        return draws

    def _is_replayed(self, tensordict: TensorDictBase) -> bool:
        """Whether a TensorDict holds transitions without estimated returns."""
        has_returns = tensordict.get(self.tensor_keys.value_target, None) is not None
        return not (self._is_rows(tensordict) or has_returns)

    def _estimated_rows(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Rows ``[*R]`` with returns, of rows or of a rollout."""
        if not self._is_rows(tensordict):
            return self.chain_rows(tensordict)
        hint = "; call loss.value_estimator(rollout) before"
        required(tensordict, self.tensor_keys.value_target, hint)
        return tensordict

    def _batch(self, tensordict: TensorDictBase, draws: TensorDictBase | None) -> WPOBatch:
        names = (*REPLAY_DRAWS, "divergence")
        if not self._is_replayed(tensordict):
            rows = detached(self._estimated_rows(tensordict), self.mdp)
            misled = required(rows, MISLED) if self.check_chains == "report" else None
            drawn = Draws(draws, rows.batch_size, names)
            return WPOBatch(rows, rows, drawn, misled, replayed=False)
        tensordict = self._enter(tensordict)
        misled = inspect_chains(self.check_chains, self.mdp, tensordict)
        given = Draws(draws, tensordict.batch_size, names)
        optional = (self.value_estimator.tensor_keys.steps_to_next_obs, *self._loss_mask_keys())
        rows = self.replayed.rows(
            tensordict, self.tensor_keys, given.get("step", 1), optional_keys=optional
        )
        return WPOBatch(rows, tensordict, given, misled, replayed=True)
