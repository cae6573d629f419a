"""Returns of trained policies when they sample, follow kernel means, or take the flow step.

python examples/benchmarks/acting_modes.py runs/benchmarks/HalfCheetah-v5/*/checkpoints/last.ckpt
"""

import argparse
from collections.abc import Sequence

import torch
from run import METHODS  # type: ignore[import-not-found]
from torchrl.envs import ExplorationType

from collectors import evaluate, make_env
from diffpolicy.trainers import EVALUATION_SEED

# By the name that a checkpoint has, which is not always that of --method.
TRAINED = {config.method: (config, make_module) for config, make_module in METHODS.values()}
MODES = {
    "sample": (ExplorationType.RANDOM, "mean"),
    "mean": (ExplorationType.DETERMINISTIC, "mean"),
    "flow": (ExplorationType.DETERMINISTIC, "flow"),
}


def mean_returns(checkpoint: str, episodes: int, seed: int) -> dict[str, float]:
    """Mean return of each way of acting, on the same evaluation environments.

    A Gaussian policy has no flow: its mean is the only deterministic action.
    """
    state = torch.load(checkpoint, weights_only=True)
    saved = state["diffpolicy"]
    config_class, make_module = TRAINED[saved["metadata"]["method"]]
    config = config_class(**{**saved["config"], "compile": False})
    module = make_module(config, torch.device("cpu"))
    module.load_state_dict(state["state_dict"])
    env = make_env(config.env, num_envs=episodes, max_episode_steps=config.max_episode_steps)
    means = {}
    for mode, (exploration_type, step) in MODES.items():
        if hasattr(module.actor, "deterministic_step"):
            module.actor.deterministic_step = step
        elif mode == "flow":
            continue
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
        cells = [f"{means[mode]:.0f}" if mode in means else "" for mode in MODES]
        print(f"| {checkpoint} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
