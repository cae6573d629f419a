"""``diffpolicy offline DATA``: training on a data set, without steps of the environment."""

import argparse
import sys

from diffpolicy.cli.arguments import Arguments
from diffpolicy.cli.clone import describe_data
from diffpolicy.cli.listing import methods
from diffpolicy.errors import ArgumentError, did_you_mean

_DESCRIPTION = """\
Train the networks of an off-policy method, critics included, on a data set alone. The result is
the folder of a run: diffpolicy eval, record and export take it, and a training goes on from it by
--init-from:

  diffpolicy offline demos --env Hopper-v5 --method diffusion_ql --updates 20000 --output runs/ql
  diffpolicy train diffusion_ql --env Hopper-v5 --init-from runs/ql --demonstrations demos

DATA comes first. It is what diffpolicy clone takes, with next observations, rewards and ends. All
further flags are options of the method: --env, --output, --batch-size, --config and what else
diffpolicy train METHOD --help lists."""


def main(words: list[str]) -> int:
    """Train; returns the exit code."""
    parser, args, flags = parsed(words)
    try:
        return _train(parser, args, flags)
    except ArgumentError as error:
        parser.refuse(error)
    except ValueError as error:
        parser.error(str(error))


def parsed(words: list[str]) -> tuple[Arguments, argparse.Namespace, list[str]]:
    """The parser, what it has read, and the words that are for the method."""
    parser = Arguments("offline", _DESCRIPTION)
    parser.add_argument("data", metavar="DATA", help="transitions")
    parser.add_argument(
        "--method", default="diffusion_ql", metavar="METHOD", help="default: diffusion_ql"
    )
    parser.add_argument("--updates", type=int, default=20_000, metavar="N", help="default: 20000")
    parser.add_argument(
        "--evaluations", type=int, default=5, metavar="N", help="at equal distances (default: 5)"
    )
    parser.add_argument(
        "--lr-decay", action="store_true", help="learning rates fall to 0 along half a cosine"
    )
    parser.add_argument(
        "--clip-actions", action="store_true", help="clip actions to the bounds of the environment"
    )
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        parser.error(f"DATA comes first, before {words[0]}.")
    args, flags = parser.parse_known_args(words)
    known = [method.name for method in methods()]
    if args.method not in known:
        advice = did_you_mean(args.method, known, f"methods are {', '.join(known)}.")
        parser.error(f"--method {args.method} does not exist; {advice}")
    if not any(word.partition("=")[0] in ("--env", "--config") for word in flags):
        parser.error("--env is missing: the environment that the transitions are of.")
    return parser, args, flags


def _train(parser: Arguments, args: argparse.Namespace, flags: list[str]) -> int:
    # Here, because these import torch.
    from collectors.streams.demonstrations import load_demonstrations
    from diffpolicy.trainers import METHODS, OfflineTraining, TrainingError, train_offline
    from diffpolicy.trainers.run.cli import parse_config
    from diffpolicy.trainers.run.parser import Parser

    method = METHODS[args.method]
    options = Parser(method.config, prog=parser.prog).parse_options(flags)
    config, _ = parse_config(method.config, options)
    settings = ("updates", "evaluations", "lr_decay", "clip_actions")
    training = OfflineTraining(**{name: getattr(args, name) for name in settings})
    data = load_demonstrations(args.data)
    sys.stdout.write(describe_data(data))

    def report(metrics: dict[str, float]) -> None:
        losses = [f"{key} {value:.4g}" for key, value in metrics.items() if key.startswith("loss_")]
        sys.stdout.write(
            f"update {metrics['gradient_steps']} of {args.updates}: return "
            f"{metrics['eval_return_mean']:.1f}, {', '.join(losses)}\n"
        )
        sys.stdout.flush()

    try:
        found, folder = train_offline(config, data, training, args.data, report)
    except TrainingError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    sys.stdout.write(
        f"{args.method} on {config.env_name}: return {found.return_mean:.1f} ± "
        f"{found.return_std:.1f} over {found.episodes} episodes ({config.eval_policy})\n"
        f"diffpolicy train {args.method} --env {config.env_name} --init-from {folder}\n"
    )
    return 0
