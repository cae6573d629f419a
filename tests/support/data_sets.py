"""Data sets of transitions for tests."""

import torch
from tensordict import TensorDict, TensorDictBase


def random_transitions(
    rows: int = 60, *, observation: int = 3, action: int = 1, bound: float = 2.0, episode: int = 20
) -> TensorDictBase:
    """Episodes of noise, with Pendulum's sizes by default, in the layout of TorchRL's data sets."""
    generator = torch.Generator().manual_seed(7)
    seen = torch.randn(rows + 1, observation, generator=generator)
    done = (torch.arange(1, rows + 1) % episode == 0).unsqueeze(-1)
    following = {
        "observation": seen[1:],
        "reward": torch.randn(rows, 1, generator=generator) - 1,
        "done": done,
        "terminated": torch.zeros_like(done),
    }
    acted = bound * (2 * torch.rand(rows, action, generator=generator) - 1)
    return TensorDict({"observation": seen[:-1], "action": acted, "next": following}, [rows])
