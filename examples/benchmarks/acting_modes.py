"""Returns of trained policies when they sample, and for every step without noise.

python examples/benchmarks/acting_modes.py runs/benchmarks/HalfCheetah-v5/*/checkpoints/last.ckpt
"""

import argparse
from collections.abc import Sequence

from checkpoints import load  # type: ignore[import-not-found]
from torchrl.envs import ExplorationType

from collectors import evaluate, make_env
from diffpolicy.trainers import EVALUATION_SEED, RLModule

MODES = {
    "sample": (ExplorationType.RANDOM, "mean"),
    "mean": (ExplorationType.DETERMINISTIC, "mean"),
    "flow": (ExplorationType.DETERMINISTIC, "flow"),
    "published": (ExplorationType.DETERMINISTIC, "published"),
}


def mean_returns(module: RLModule, episodes: int, seed: int) -> dict[str, float]:
    """Mean return of each way of acting, on the same evaluation environments.

    A Gaussian policy has no other steps: its mean is the only deterministic action.
    """
    config = module.config
    env = make_env(config.env, num_envs=episodes, max_episode_steps=config.max_episode_steps)
    means = {}
    for mode, (exploration_type, step) in MODES.items():
        if hasattr(module.actor, "deterministic_step"):
            module.actor.deterministic_step = step
        elif step != "mean":
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
    try:
        modules = [load(checkpoint)[1] for checkpoint in args.checkpoints]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("| checkpoint | " + " | ".join(MODES) + " |")
    print("| --- " * (len(MODES) + 1) + "|")
    for checkpoint, module in zip(args.checkpoints, modules, strict=True):
        means = mean_returns(module, args.episodes, args.seed)
        cells = [f"{means[mode]:.0f}" if mode in means else "" for mode in MODES]
        print(f"| {checkpoint} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
