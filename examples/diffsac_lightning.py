r"""Train a diffusion policy with DiffSAC on one or several devices.

    python examples/diffsac_lightning.py --env HalfCheetah-v5 --total-frames 100000
    python examples/diffsac_lightning.py --env dmc:cheetah-run --total-frames 100000 \
        --critic-head hl_gauss
    python examples/diffsac_lightning.py --env Humanoid-v5 --denoising-steps 16 --sampled-steps 4 \
        --batch-size 256 --total-frames 1000000 --gpus 1

The output folder holds config.yaml, metrics.csv, timing.csv, results.json, returns.png, TensorBoard
events and checkpoints. Ctrl-C ends a run with a checkpoint; --resume continues from one.
"""

import sys
from collections.abc import Sequence

from diffpolicy.trainers import METHODS, run_script


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: ``sys.argv``) and return the exit code."""
    return run_script(METHODS["diffsac"], argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
