"""``diffpolicy export POLICY``: a file that runs without this package."""

import sys
from pathlib import Path

from diffpolicy.cli.acting import default_folder
from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError

_DESCRIPTION = """\
Write a trained policy to a file that runs without this package, and check the file.

  diffpolicy export runs/pendulum                                  -> runs/pendulum/policy.onnx
  diffpolicy export runs/pendulum --mode mean --denoising-steps 2
  diffpolicy export runs/pendulum --format torch --output policy.pt2"""
_ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}


def main(words: list[str]) -> int:
    """Export; returns the exit code."""
    parser = Arguments("export", _DESCRIPTION)
    parser.add_argument(
        "policy", metavar="POLICY", help="folder of a run, a checkpoint, or a saved policy"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: in that folder")
    parser.add_argument(
        "--format", choices=list(_ENDINGS), default="onnx", help="onnx (default) or torch.export"
    )
    parser.add_argument(
        "--mode",
        default="sample",
        metavar="sample|mean|flow|published",
        help="sample (default), or how to act without noise",
    )
    parser.add_argument(
        "--noise",
        choices=["input", "drawn"],
        default="input",
        help="whether noise is an input of the file (default), or the file draws it",
    )
    parser.add_argument("--denoising-steps", type=int, metavar="N", help="other than in training")
    args = parser.parse_args(words)
    output = args.output or default_folder(args.policy) / f"policy{_ENDINGS[args.format]}"

    # Here, because these import torch.
    from diffpolicy import load_policy
    from diffpolicy.policy import ExportError

    try:
        policy = load_policy(args.policy, denoising_steps=args.denoising_steps)
        path = policy.export(output, format=args.format, mode=args.mode, noise=args.noise)
    except ArgumentError as error:
        parser.refuse(error)
    except ExportError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    steps = f"{policy.denoising_steps} denoising step{'s' if policy.denoising_steps > 1 else ''}"
    sys.stdout.write(f"{path}: mode {args.mode}, {steps}, checked against the policy\n")
    return 0
