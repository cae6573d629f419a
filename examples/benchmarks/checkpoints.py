"""Trained policies from checkpoints; used by acting_modes.py and multimodal.py."""

import pickle
from pathlib import Path

import torch
from run import METHODS  # type: ignore[import-not-found]

from diffpolicy.trainers import RLModule

# By the name that a checkpoint has, which is not always that of --method.
TRAINED = {config.method: (config, make_module) for config, make_module in METHODS.values()}


def load(checkpoint: str) -> tuple[str, RLModule]:
    """The name of a run and its module on the CPU, with the parameters of a checkpoint.

    Raises:
        ValueError: if the file is not a checkpoint of a diffpolicy run, or is of a method that
            ``run.py`` does not know.
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
    if method not in TRAINED:
        raise ValueError(f"{checkpoint} is of {method}; known methods: {', '.join(TRAINED)}.")
    config_class, make_module = TRAINED[method]
    config = config_class(**{**saved["config"], "compile": False})
    module: RLModule = make_module(config, torch.device("cpu"))
    module.load_state_dict(state["state_dict"])
    default = f"{method}-seed{config.seed}"
    return Path(config.output).name if config.output else default, module
