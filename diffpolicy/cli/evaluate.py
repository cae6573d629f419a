"""``diffpolicy eval RUN``: returns in fresh episodes."""

import json
import sys
from dataclasses import asdict
from typing import Any

from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError


def main(words: list[str]) -> int:
    """Evaluate; returns the exit code."""
    parser = Arguments("eval")
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument("--episodes", type=int, metavar="N", help="default: as in training")
    parser.add_argument("--env", metavar="ENV", help="another environment with the same spaces")
    parser.add_argument("--max-episode-steps", type=int, metavar="N", help="cut episodes off")
    parser.add_argument("--eval-policy", choices=["deterministic", "stochastic"], help="how to act")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of initial states (default: as in training)"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON")
    args = parser.parse_args(words)
    if args.episodes is not None and args.episodes < 1:
        parser.error(f"--episodes must be at least 1, got {args.episodes}.")

    # Here, because these import torch.
    from diffpolicy.trainers import TrainingError
    from diffpolicy.trainers.run.trained import evaluate_run, load_run

    names = ("env", "max_episode_steps", "eval_policy")
    options: dict[str, Any] = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    try:
        module, _ = load_run(args.run, **options)
        seed = {} if args.seed is None else {"seed": args.seed}
        found = evaluate_run(module, args.episodes, **seed)
    except ArgumentError as error:
        parser.refuse(error)
    except ValueError as error:
        parser.error(str(error))
    except TrainingError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    config = module.config
    if args.json:
        said = {"method": config.method, "env": config.env_name, "eval_policy": config.eval_policy}
        sys.stdout.write(json.dumps({**said, **asdict(found)}) + "\n")
    else:
        sys.stdout.write(
            f"{config.method} on {config.env_name} after {found.env_steps} environment steps: "
            f"return {found.return_mean:.1f} ± {found.return_std:.1f} over {found.episodes} "
            f"episodes ({config.eval_policy})\n"
        )
    return 0
