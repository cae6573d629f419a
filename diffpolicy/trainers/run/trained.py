"""Trained runs: their modules with the parameters of a checkpoint, and what they return."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from collectors import EVALUATION_SEED
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.options import fields_of
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.loops.base import RLModule
from diffpolicy.trainers.loops.evaluation import Evaluation, Evaluator
from diffpolicy.trainers.methods import METHODS, Method
from diffpolicy.trainers.run.scope import run_scope

_CPU = torch.device("cpu")
# What a policy is used with, one environment at a time on a CPU, whatever it was trained with.
_HERE: dict[str, Any] = {
    "gpus": 0,
    "cpu_ranks": 1,
    "num_nodes": 1,
    "collector": "local",
    "num_workers": 0,
    "restart_workers": 0,
    "compile": False,
    "eval_env": "own",
    "resume": None,
    "init_from": None,
    "demonstrations": None,
    "demonstration_fraction": None,
}


def load_run(
    source: str | Path, method: Method | None = None, **options: Any
) -> tuple[RLModule, Checkpoint]:
    """The module of a run with its parameters, on the CPU.

    Args:
        source: folder of a run (its newest checkpoint counts), or a checkpoint.
        method: for a method that is not registered.
        options: of the run, to change.

    Raises:
        ArgumentError: there is no such run, its method is not registered, or an option does not go
            with its networks.
    """
    checkpoint = Checkpoint.of_run(source, "run")
    name = checkpoint.state["metadata"]["method"]
    if method is None and name not in METHODS:
        problem = f"is of the method {name}; registered ones are {', '.join(METHODS)}."
        raise ArgumentError("run", str(source), problem)
    method = METHODS[name] if method is None else method
    given = {**checkpoint.state["config"], **_HERE, **options}
    known = {field.name for field in fields_of(method.config)}
    config = method.config(**{key: value for key, value in given.items() if key in known})
    with run_scope(_CPU):
        module = method.module(config, _CPU)
    try:
        module.load_state_dict(checkpoint.content["state_dict"])
    except RuntimeError as error:
        problem = f"does not go with --env {config.env_name}: {' '.join(str(error).split())}"
        raise ArgumentError("run", str(source), problem) from error
    module.progress.load_state_dict(checkpoint.state)
    return module, checkpoint


def evaluate_run(
    module: RLModule, episodes: int | None = None, *, seed: int = EVALUATION_SEED
) -> Evaluation:
    """Run episodes in fresh environments, on the CPU.

    Args:
        module: of a trained run.
        episodes: how many; by default as many as the run's own evaluations.
        seed: of initial states and noise; by default that of all evaluations, so that the last one
            of a run can be repeated.

    Raises:
        TrainingError: an episode does not end, or a number is not finite.
    """
    count = module.config.eval_episodes if episodes is None else episodes
    evaluator = Evaluator(replace(module.config, eval_episodes=count), seed)
    try:
        with run_scope(_CPU):
            found = evaluator.evaluate(module.actor, module.progress.frames)
    finally:
        evaluator.close()
    if isinstance(found, str):
        raise TrainingError(f"the evaluation failed: {found}")
    return found
