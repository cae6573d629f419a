"""``diffpolicy clone DATA``: behaviour cloning of a data set."""

import argparse
import sys
from typing import TYPE_CHECKING

from diffpolicy.cli.arguments import Arguments
from diffpolicy.cli.listing import methods
from diffpolicy.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    from tensordict import TensorDictBase

_DESCRIPTION = """\
Fit the policy of a method to demonstrations. The result is the folder of a run: diffpolicy eval,
record and export take it, and a training begins with it by --init-from:

  diffpolicy clone demos --env Hopper-v5 --method diffppo --output runs/bc
  diffpolicy clone minari:mujoco/hopper/medium-v0 --env Hopper-v5 --output runs/bc
  diffpolicy train diffppo --env Hopper-v5 --init-from runs/bc --policy-starts 10000

DATA is a folder of diffpolicy demonstrate (a memory-mapped TensorDict), a .pt or .npz file with
observation and action, minari:NAME, or lerobot:NAME, of single steps also for --frame-stack and
--action-chunk, which make histories and plans of them. Sizes, steps and everything else of the
policy are options of the method, for which --config names a YAML file (diffpolicy train METHOD
--print-config); give the same one to the training that goes on."""


def main(words: list[str]) -> int:
    """Clone; returns the exit code."""
    parser = Arguments("clone", _DESCRIPTION)
    parser.add_argument("data", metavar="DATA", help="demonstrations")
    parser.add_argument("--env", metavar="ENV", help="the environment (or env of --config)")
    parser.add_argument(
        "--method", default="diffppo", metavar="METHOD", help="whose policy (default: diffppo)"
    )
    parser.add_argument("--config", metavar="FILE", help="options of the method, as YAML")
    parser.add_argument(
        "--frame-stack", type=int, metavar="K", help="last observations that the policy reads"
    )
    parser.add_argument(
        "--action-chunk", type=int, metavar="H", help="actions that the policy plans at once"
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: a new folder in runs/")
    parser.add_argument("--epochs", type=int, default=100, metavar="N", help="default: 100")
    parser.add_argument("--updates", type=int, metavar="N", help="instead of --epochs")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="default: 256")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="X", help="default: 0.001")
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0, or that of --config")
    parser.add_argument(
        "--clip-actions", action="store_true", help="clip actions to the bounds of the environment"
    )
    parser.add_argument(
        "--eval-episodes", type=int, metavar="N", help="default: 10, or those of --config"
    )
    args = parser.parse_args(words)
    known = [method.name for method in methods()]
    if args.method not in known:
        advice = did_you_mean(args.method, known, f"methods are {', '.join(known)}.")
        parser.error(f"--method {args.method} does not exist; {advice}")
    if args.env is None and args.config is None:
        parser.error("--env is missing: the environment that the demonstrations are of.")
    try:
        return _clone(parser, args)
    except ArgumentError as error:
        parser.refuse(error)
    except ValueError as error:
        parser.error(str(error))


def _clone(parser: Arguments, args: argparse.Namespace) -> int:
    # Here, because these import torch.
    from collectors.streams.demonstrations import load_demonstrations
    from diffpolicy.trainers import METHODS, TrainingError
    from diffpolicy.trainers.run.cli import parse_config
    from diffpolicy.trainers.run.clone import Cloning, clone
    from diffpolicy.trainers.run.parser import Parser

    windows = ("frame_stack", "action_chunk")
    names = ("config", "env", "output", "seed", "eval_episodes", *windows)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    flags = [word for name, value in given.items() for word in (_flag(name), str(value))]
    method = METHODS[args.method]
    options = Parser(method.config, prog=parser.prog).parse_options(flags)
    config, _ = parse_config(method.config, options)
    settings = ("updates", "epochs", "batch_size", "lr", "clip_actions")
    cloning = Cloning(**{name: getattr(args, name) for name in settings})
    data = load_demonstrations(args.data)
    sys.stdout.write(describe_data(data))

    def report(update: int, total: int, loss: float) -> None:
        sys.stdout.write(f"update {update} of {total}: loss {loss:.4f}\n")
        sys.stdout.flush()

    try:
        found, folder = clone(config, data, cloning, args.data, report)
    except TrainingError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    flags = [f" {_flag(name)} {getattr(config, name)}" for name in windows]
    same = "".join(flag for flag in flags if not flag.endswith(" 1"))
    sys.stdout.write(
        f"the clone on {config.env_name}: return {found.return_mean:.1f} ± {found.return_std:.1f} "
        f"over {found.episodes} episodes ({config.eval_policy})\n"
        f"diffpolicy train {args.method} --env {config.env_name}{same} --init-from {folder}\n"
    )
    return 0


def describe_data(data: "TensorDictBase") -> str:
    """A line on the size and the returns of a data set."""
    from collectors.streams.demonstrations import episode_returns

    returns = episode_returns(data)
    if not returns:
        return f"{len(data)} transitions\n"
    return (
        f"{len(data)} transitions, {len(returns)} episodes: return "
        f"{sum(returns) / len(returns):.1f}, at best {max(returns):.1f}\n"
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
