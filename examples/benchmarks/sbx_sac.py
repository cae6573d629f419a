"""SBX's SAC (Stable-Baselines3's in JAX) with its own defaults, for speed.py.

    pip install -r examples/benchmarks/speed-peers.txt        # in an environment of its own
    python examples/benchmarks/sbx_sac.py --env HalfCheetah-v5 --seeds 0 --total-frames 20000

One environment, one update for each step after 100 random ones, batches of 256. Evaluations and
results are those of sb3_ppo.py.
"""

from typing import Any

from sb3_ppo import (  # type: ignore[import-not-found]
    Evaluations,
    learned,
    plain_environments,
    run,
)
from sbx import SAC  # type: ignore[import-not-found]


def train(name: str, seed: int, frames: int, every: int, episodes: int) -> dict[str, Any]:
    """One run, in the format of ``results.json``."""
    model = SAC("MlpPolicy", plain_environments(name, 1, seed), seed=seed)
    test = plain_environments(name, episodes, seed + 10_000)
    evaluations = Evaluations(test, every, episodes, rollout=1)
    return {
        "method": "sbx-sac",
        "env": name,
        "seed": seed,
        **learned(model, frames, evaluations),
    }


if __name__ == "__main__":
    run(__doc__, "sbx-sac", train, 20_000)
