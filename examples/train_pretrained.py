"""Train small policies of the methods for the package, and ship those that solve their task.

One after the other::

    python examples/train_pretrained.py             # those that are not there
    python examples/train_pretrained.py qsm sac     # these methods again

A return of 1000 is the best on InvertedPendulum-v5, and one of -200 or more solves Pendulum-v1.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from diffpolicy import load_policy

PRETRAINED = Path(__file__).resolve().parents[1] / "diffpolicy" / "pretrained"
# One shell command each, so that they can be typed as well.
COMMANDS = {
    "diffppo": "diffpolicy train diffppo --env InvertedPendulum-v5 --total-frames 50000",
    "diffsac": "diffpolicy train diffsac --env Pendulum-v1 --total-frames 10000 --eval-every 2000"
    " --eval-policy deterministic",
    "diffwpo": "diffpolicy train diffwpo --env InvertedPendulum-v5 --total-frames 50000",
    "dime": "diffpolicy train dime --env Pendulum-v1 --total-frames 10000 --eval-every 2000"
    " --eval-policy deterministic",
    "dipo": "diffpolicy train dipo --env Pendulum-v1 --total-frames 6000 --batch-size 64"
    " --actor-hidden-sizes 64 64 --critic-hidden-sizes 128 128 --lr-actor 0.001 --ascent-steps 5"
    " --eval-every 1500 --eval-policy deterministic",
    "gaussian_ppo": "diffpolicy train gaussian_ppo --env InvertedPendulum-v5 --total-frames 50000",
    "gaussian_wpo": "diffpolicy train gaussian_wpo --env InvertedPendulum-v5 --total-frames 50000",
    "qsm": "diffpolicy train qsm --env Pendulum-v1 --total-frames 8000 --eval-every 2000"
    " --eval-policy deterministic",
    "qvpo": "diffpolicy train qvpo --env Pendulum-v1 --total-frames 6000 --batch-size 64"
    " --actor-hidden-sizes 64 64 --critic-hidden-sizes 128 128 --lr-actor 0.001 --num-actions 4"
    " --eval-every 1500 --eval-policy deterministic",
    "sac": "diffpolicy train sac --env Pendulum-v1 --total-frames 8000 --eval-every 2000"
    " --actor-hidden-sizes 64 64 --lr-actor 0.001 --lr-critic 0.001",
    "sdac": "diffpolicy train sdac --env Pendulum-v1 --total-frames 6000 --batch-size 64"
    " --actor-hidden-sizes 64 64 --critic-hidden-sizes 128 128 --lr-actor 0.001 --num-actions 2"
    " --num-noises 8 --eval-every 1500 --eval-policy deterministic",
}
#: Those that come without a policy.
WITHOUT = ("dacer", "diffusion_ql", "dpmd", "fpmd", "maxent_dp")
SOLVED = {"InvertedPendulum-v5": 1000.0, "Pendulum-v1": -200.0}


def make(method: str, runs: Path) -> None:
    """Train a method, and ship its policy if it solves the task."""
    words = shlex.split(COMMANDS[method])
    env = words[words.index("--env") + 1]
    run = runs / f"{method}-{env}"
    subprocess.run([sys.executable, "-m", *words, "--output", str(run)], check=True)
    policy = load_policy(run)
    last = policy.training["evaluations"][-1]["return_mean"]
    if last < SOLVED[env]:
        raise SystemExit(f"{run} ended at {last:.1f}, which is less than {SOLVED[env]:g}.")
    policy.save_pretrained(PRETRAINED / run.name, license="mit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="default: what is missing")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained"), help="their folder")
    args = parser.parse_args()
    there = {path.name.split("-")[0] for path in PRETRAINED.iterdir()}
    for method in args.methods or [name for name in COMMANDS if name not in there]:
        if method not in COMMANDS:
            parser.error(f"there is no method {method}; there are {', '.join(COMMANDS)}.")
        make(method, args.runs)


if __name__ == "__main__":
    main()
