"""Stable-Baselines3's SAC with its own defaults, as a baseline that is not ours.

    pip install stable-baselines3        # in an environment of its own, with gymnasium[mujoco]
    python examples/benchmarks/sb3_sac.py --env HalfCheetah-v5 --seeds 0 1 2 --total-frames 20000

One environment, one update for each step after 100 random ones; observations and rewards are as
they come. Tasks dmc:domain-task need shimmy[dm-control], too. Evaluations and results are those of
sb3_ppo.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from sb3_ppo import (  # type: ignore[import-not-found]
    Evaluations,
    learned,
    plain_environments,
    run,
)
from stable_baselines3 import SAC


def train(
    name: str,
    seed: int,
    frames: int,
    every: int,
    episodes: int,
    *,
    label: str,
    make: Callable[..., Any],
) -> dict[str, Any]:
    """One run of a SAC with this interface, in the format of ``results.json``."""
    model = make("MlpPolicy", plain_environments(name, 1, seed), seed=seed)
    test = plain_environments(name, episodes, seed + 10_000)
    evaluations = Evaluations(test, every, episodes, rollout=1)
    return {
        "method": label,
        "env": name,
        "seed": seed,
        **learned(model, frames, evaluations),
    }


if __name__ == "__main__":
    sac = partial(train, label="sb3-sac", make=partial(SAC, device="cpu"))
    run(__doc__, "sb3-sac", sac, 20_000)
