r"""Train a diffusion policy with DiffWPO on one or several devices.

    python examples/diffwpo_lightning.py --env HalfCheetah-v5 --total-frames 300000
    python examples/diffwpo_lightning.py --env HalfCheetah-v5 --critic-head hl_gauss --bins 151
    python examples/diffwpo_lightning.py --env HalfCheetah-v5 --gpus 4
    python examples/diffwpo_lightning.py --cpu-ranks 2

The output folder holds config.yaml, metrics.csv, timing.csv, results.json, returns.png, TensorBoard
events and checkpoints. Ctrl-C ends a run with a checkpoint; --resume continues from one.
"""

import sys
from collections.abc import Sequence

from diffpolicy.trainers import METHODS, run_script


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: ``sys.argv``) and return the exit code."""
    return run_script(METHODS["diffwpo"], argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
