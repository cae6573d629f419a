"""Trained policies from checkpoints; used by acting_modes.py and multimodal.py."""

import pickle
from pathlib import Path
from typing import Any

import torch

from diffpolicy.trainers import METHODS, RLModule


def load(checkpoint: str) -> tuple[str, RLModule]:
    """The name of a run and its module on the CPU, with the parameters of a checkpoint.

    Raises:
        ValueError: if the file is not a checkpoint of a diffpolicy run, or is of a method that is
            not registered.
        OSError: if the file cannot be read.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise ValueError(f"{checkpoint} is not a readable checkpoint.") from error
    if not isinstance(state, dict) or "diffpolicy" not in state:
        raise ValueError(f"{checkpoint} is not a checkpoint of a diffpolicy run.")
    saved = state["diffpolicy"]
    method = saved["metadata"]["method"]
    if method not in METHODS:
        raise ValueError(f"{checkpoint} is of {method}; known methods: {', '.join(METHODS)}.")
    config: Any = METHODS[method].config(**{**saved["config"], "compile": False})
    module = METHODS[method].module(config, torch.device("cpu"))
    module.load_state_dict(state["state_dict"])
    default = f"{method}-seed{config.seed}"
    return Path(config.output).name if config.output else default, module
