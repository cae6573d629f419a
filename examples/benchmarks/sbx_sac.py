"""SBX's SAC (Stable-Baselines3's in JAX) with its own defaults, for speed.py.

    pip install -r examples/benchmarks/speed-peers.txt        # in an environment of its own
    python examples/benchmarks/sbx_sac.py --env HalfCheetah-v5 --seeds 0 --total-frames 20000

One environment, one update for each step after 100 random ones, batches of 256. The rest is
that of sb3_sac.py.
"""

from functools import partial

from sb3_ppo import run  # type: ignore[import-not-found]
from sb3_sac import train  # type: ignore[import-not-found]
from sbx import SAC  # type: ignore[import-not-found]

if __name__ == "__main__":
    run(__doc__, "sbx-sac", partial(train, label="sbx-sac", make=SAC), 20_000)
