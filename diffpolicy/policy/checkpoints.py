"""Policies from the checkpoints of runs, which Lightning has written and is not needed to read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from diffpolicy.errors import ArgumentError
from diffpolicy.files import CHECKPOINT_FOLDER, CHECKPOINT_KEY, LAST_CHECKPOINT, read_plain
from diffpolicy.policy.policy import Policy
from diffpolicy.policy.spec import PolicySpec

#: Where the state of a run's checkpoint holds the description of its policy.
POLICY_KEY = "policy"
_PROBLEM = "problem"
_PARAMETERS = "loss.actor_network_params."


def newest_checkpoint(folder: Path) -> Path | None:
    """``last.ckpt`` in a folder of checkpoints, else the numbered one with the most steps."""
    last = folder / LAST_CHECKPOINT
    return last if last.exists() else max(folder.glob("frames_*.ckpt"), default=None)


def described_policy(actor: Any, env: EnvBase) -> dict[str, Any]:
    """What a checkpoint says about the policy of a run, or why it cannot be described.

    Args:
        actor: what acts.
        env: what it was built for, from :func:`collectors.make_env`.
    """
    try:
        return PolicySpec.of(actor, env).plain()
    except ArgumentError as error:
        return {_PROBLEM: str(error)}


def policy_from_checkpoint(path: Path, device: torch.device | str) -> Policy:
    """The policy of a checkpoint.

    Raises:
        ArgumentError: if it cannot be read, or does not say how its policy is built.
    """
    try:
        content = read_plain(path)
    except ValueError as error:
        raise ArgumentError("source", str(path), f"is not readable: {error}.") from error
    state = content.get(CHECKPOINT_KEY) if isinstance(content, dict) else None
    if not isinstance(state, dict) or "config" not in state:
        raise ArgumentError("source", str(path), "is not a checkpoint of a diffpolicy run.")
    plain = state.get(POLICY_KEY)
    if plain is None:
        raise ArgumentError(
            "source",
            str(path),
            "does not say how its policy is built: it is of an earlier version (a run that "
            "continues it with --resume writes one that does).",
        )
    if _PROBLEM in plain:
        problem = f"holds a policy that no file describes: {plain[_PROBLEM]}"
        raise ArgumentError("source", str(path), problem)
    try:
        spec = PolicySpec.from_plain(plain)
        parameters = _parameters(content["state_dict"])
        policy = Policy(spec, parameters, training=_training(state), device=device)
    except ArgumentError:  # says what is missing here
        raise
    except (KeyError, TypeError, ValueError) as error:
        problem = f"is a checkpoint of another version: {error}."
        raise ArgumentError("source", str(path), problem) from error
    if path.parent.name == CHECKPOINT_FOLDER:
        policy.run_folder = path.parent.parent
    return policy


def _parameters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(_PARAMETERS): value
        for name, value in state_dict.items()
        if name.startswith(_PARAMETERS)
    }


def _training(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says about the training, as :class:`Policy` has it."""
    config = state["config"]
    return {
        "method": state["metadata"]["method"],
        "env": config["env"],
        "seed": config["seed"],
        "env_steps": state["frames"],
        "gradient_steps": state["gradient_steps"],
        "wall_seconds": state["wall_seconds"],
        "config": config,
        "versions": state.get("versions", {}),
        "evaluations": state["evaluations"],
    }
