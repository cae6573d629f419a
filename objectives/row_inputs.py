"""Losses that take rows of the denoising MDP besides whole transitions."""

from abc import ABC, abstractmethod

from tensordict import NestedKey, TensorDictBase

from diffpolicy.actors import DenoisingMDP
from objectives.chain_checks import MISLED, ChainCheck, inspect_chains


class RowInputs(ABC):
    """From rollouts with estimates to rows, and keyword calls on both; mixed into a loss."""

    in_keys: list[NestedKey]
    mdp: DenoisingMDP
    check_chains: ChainCheck

    @property
    @abstractmethod
    def row_keys(self) -> list[NestedKey]:
        """Entries that the loss reads from rows; ``in_keys`` are those of transitions."""

    @property
    def keyword_keys(self) -> list[NestedKey]:
        """Entries that keyword calls may name: those of ``in_keys``, or of ``row_keys``."""
        return list(dict.fromkeys([*self.in_keys, *self.row_keys]))

    @abstractmethod
    def _estimated_keys(self) -> list[NestedKey]:
        """Entries ``[*B, N, 1]`` of the value estimator that rows take along."""

    def chain_rows(self, rollout: TensorDictBase) -> TensorDictBase:
        """Denoising-MDP rows ``[*B, N]`` of transitions ``[*B]`` with estimates.

        Raises:
            ValueError: if chains do not lead to their actions, see ``check_chains``.
        """
        misled = inspect_chains(self.check_chains, self.mdp, rollout)
        if misled is not None:
            rollout = rollout.copy().set(MISLED, misled)
        carried = (*self._loss_mask_keys(), self.tensor_keys.priority_weight, MISLED)  # type: ignore[attr-defined]
        return self.mdp.rows(rollout, step_keys=self._estimated_keys(), carry_keys=carried)

    def _is_rows(self, tensordict: TensorDictBase) -> bool:
        return tensordict.get(self.mdp.keys.next_latent, None) is not None
