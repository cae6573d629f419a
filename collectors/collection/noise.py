"""Exploration noise that neither reads nor moves the global random state."""

import torch
from tensordict import TensorDictBase
from torch import Tensor


class NoiseStream:
    """Swaps a private random state in for the length of a rollout, and the global one back."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._states = [torch.Generator().manual_seed(seed).get_state()]
        if device.type == "cuda":
            self._states.append(torch.Generator(device).manual_seed(seed).get_state())

    def enter(self) -> None:
        """Before a rollout."""
        self._swap()

    def leave(self, rollout: TensorDictBase) -> None:
        """After a rollout."""
        self._swap()

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The private random state between two rollouts."""
        return {"states": [state.clone() for state in self._states]}

    def load_state_dict(self, state_dict: dict[str, list[Tensor]]) -> None:
        """Continue from a saved state, between two rollouts."""
        self._states = [state.clone() for state in state_dict["states"]]

    def _swap(self) -> None:
        current = [torch.get_rng_state()]
        torch.set_rng_state(self._states[0])
        if self._device.type == "cuda":
            current.append(torch.cuda.get_rng_state(self._device))
            torch.cuda.set_rng_state(self._states[1], self._device)
        self._states = current
