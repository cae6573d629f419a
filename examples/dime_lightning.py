r"""Train a diffusion policy with DIME on one or several devices.

    python examples/dime_lightning.py --env HalfCheetah-v5 --total-frames 100000
    python examples/dime_lightning.py --env dmc:cheetah-run --total-frames 100000 \
        --temperature 0.02 --lr-temperature 0.003
    python examples/dime_lightning.py --preset paper --env Humanoid-v5 --value-range -1600 1600 \
        --total-frames 1000000 --gpus 1

The output folder holds config.yaml, metrics.csv, timing.csv, results.json, returns.png, TensorBoard
events and checkpoints. Ctrl-C ends a run with a checkpoint; --resume continues from one.
"""

import sys
from collections.abc import Sequence

from diffpolicy.trainers import METHODS, run_script


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: ``sys.argv``) and return the exit code."""
    return run_script(METHODS["dime"], argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
