"""Where policies come from: runs, checkpoints, folders, the hub, this package."""

from pathlib import Path

import torch

from diffpolicy.errors import ArgumentError
from diffpolicy.files import CHECKPOINT_FOLDER
from diffpolicy.policy.checkpoints import newest_checkpoint, policy_from_checkpoint
from diffpolicy.policy.policy import Policy


def load_policy(
    source: str | Path,
    *,
    denoising_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Policy:
    """A trained policy that acts, without its trainer and without Lightning.

    Args:
        source: the folder of a run (its newest checkpoint) or a checkpoint.
        denoising_steps: act with another number of denoising steps than in training.
        device: where it acts.

    Raises:
        ArgumentError: if there is no policy at ``source``, or it cannot act with this number of
            steps.
    """
    path = Path(source)
    if path.is_file():
        policy = policy_from_checkpoint(path, device)
    elif path.is_dir():
        policy = _from_folder(path, device)
    else:
        raise ArgumentError("source", str(source), "is neither a file nor a folder.")
    if denoising_steps is not None:
        policy.denoising_steps = denoising_steps
    return policy


def _from_folder(folder: Path, device: torch.device | str) -> Policy:
    checkpoint = newest_checkpoint(folder / CHECKPOINT_FOLDER) or newest_checkpoint(folder)
    if checkpoint is None:
        problem = f"holds no policy: a run has checkpoints in {CHECKPOINT_FOLDER}/."
        raise ArgumentError("source", str(folder), problem)
    return policy_from_checkpoint(checkpoint, device)
