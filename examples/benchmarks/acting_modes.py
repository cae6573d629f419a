"""Returns of trained policies when they sample, follow kernel means, or take the flow step.

python examples/benchmarks/acting_modes.py runs/benchmarks/HalfCheetah-v5/*/checkpoints/last.ckpt
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torchrl.envs import ExplorationType

from collectors import evaluate, make_env
from diffpolicy.trainers import (
    EVALUATION_SEED,
    DiffPPOConfig,
    DIMEConfig,
    diffppo_module,
    dime_module,
)

METHODS: dict[str, tuple[Any, Any]] = {
    "diffppo": (DiffPPOConfig, diffppo_module),
    "dime": (DIMEConfig, dime_module),
}
MODES = {
    "sample": (ExplorationType.RANDOM, "mean"),
    "mean": (ExplorationType.DETERMINISTIC, "mean"),
    "flow": (ExplorationType.DETERMINISTIC, "flow"),
}


def mean_returns(checkpoint: str, episodes: int, seed: int) -> dict[str, float]:
    """Mean return of each way of acting, on the same evaluation environments."""
    state = torch.load(checkpoint, weights_only=True)
    saved = state["diffpolicy"]
    config_class, make_module = METHODS[saved["metadata"]["method"]]
    config = config_class(**{**saved["config"], "compile": False})
    module = make_module(config, torch.device("cpu"))
    module.load_state_dict(state["state_dict"])
    env = make_env(config.env, num_envs=episodes)
    means = {}
    for mode, (exploration_type, step) in MODES.items():
        module.actor.deterministic_step = step
        returns, _ = evaluate(
            module.actor, env, episodes, seed=seed, exploration_type=exploration_type
        )
        means[mode] = sum(returns) / episodes
    env.close()
    return means


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table, one row per checkpoint."""
    parser = argparse.ArgumentParser(description="Compare ways of acting of trained policies.")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument(
        "--seed", type=int, default=EVALUATION_SEED, help="default: that of training runs"
    )
    args = parser.parse_args(argv)
    print("| checkpoint | " + " | ".join(MODES) + " |")
    print("| --- " * (len(MODES) + 1) + "|")
    for checkpoint in args.checkpoints:
        means = mean_returns(checkpoint, args.episodes, args.seed)
        print(f"| {checkpoint} | " + " | ".join(f"{means[mode]:.0f}" for mode in MODES) + " |")


if __name__ == "__main__":
    main()
