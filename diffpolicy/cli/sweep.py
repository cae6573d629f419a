"""``diffpolicy sweep FILE``: search for options."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError

if TYPE_CHECKING:
    import optuna

_DESCRIPTION = """\
Search for options with Optuna. FILE is YAML:

  method: dime
  trials: 20
  options:                 # shared by all trials, as flags of `diffpolicy train dime`
    env: Pendulum-v1
    total_frames: 10000
    eval_every: 2000       # a trial that is worse than the median of the others is pruned
  search:
    lr_actor: {low: 1e-4, high: 3e-3, log: true}
    denoising_steps: {low: 2, high: 16}
    actor_hidden_sizes: {choices: [[64, 64], [256, 256]]}

Every trial is a run in its own folder in --output, and best.yaml there is the configuration of the
best one, for `diffpolicy train --config`. The same command once more goes on with a sweep that was
interrupted, or that is to have more trials. What counts is the return of the last evaluation."""


def main(words: list[str]) -> int:
    """Search; returns the exit code."""
    parser = Arguments("sweep", _DESCRIPTION)
    parser.add_argument("file", type=Path, metavar="FILE", help="what to search")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: runs/NAME OF FILE")
    parser.add_argument("--trials", type=int, metavar="N", help="instead of those of the file")
    args = parser.parse_args(words)
    if args.trials is not None and args.trials < 1:
        parser.error(f"--trials must be at least 1, got {args.trials}.")
    try:
        return _search(parser, args)
    except ArgumentError as error:
        parser.refuse(error)
    except ValueError as error:
        parser.error(str(error))


def _search(parser: Arguments, args: argparse.Namespace) -> int:
    # Here, because these import torch and optuna.
    from dataclasses import replace

    from diffpolicy.trainers.run.sweep import BEST_FILE, Sweep, run_sweep

    sweep = Sweep.read(args.file)
    if args.trials is not None:
        sweep = replace(sweep, trials=args.trials)
    output = args.output or Path("runs") / args.file.stem
    study, finished = run_sweep(sweep, output)
    sys.stdout.write(table(study))
    if not finished:
        sys.stdout.write("interrupted; the same command goes on\n")
        return 130
    if not (output / BEST_FILE).exists():
        sys.stderr.write(f"{parser.prog}: no trial was finished.\n")
        return 1
    sys.stdout.write(f"\ndiffpolicy train --config {output / BEST_FILE}\n")
    return 0


def table(study: "optuna.Study") -> str:
    """A Markdown table of all trials, the best first."""
    names = list(dict.fromkeys(name for trial in study.trials for name in trial.params))
    head = ["trial", "state", "return", *names]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    # Those without a value are neither finished nor pruned after an evaluation.
    ranked = sorted(study.trials, key=lambda t: (t.state.name, -(t.value or 0.0)))
    for trial in ranked:
        value = "" if trial.value is None else f"{trial.value:.1f}"
        chosen = [str(trial.params.get(name, "")) for name in names]
        lines.append(f"| {' | '.join([str(trial.number), trial.state.name, value, *chosen])} |")
    return "\n".join([*lines, ""])
