"""``diffpolicy train METHOD``: the command line of a method."""

import importlib
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

from diffpolicy.cli.arguments import Arguments
from diffpolicy.cli.listing import methods
from diffpolicy.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    from diffpolicy.trainers import Method

_DESCRIPTION = """\
Train a method: diffpolicy train METHOD [options], or diffpolicy train --config run.yaml.

  diffpolicy train dime --env Pendulum-v1 --total-frames 10000
  diffpolicy train dime --help            all options of a method, and their defaults
  diffpolicy train dime --print-config    the same as a YAML file, for --config
  diffpolicy train my_module:MY_METHOD    a diffpolicy.trainers.Method of your own

The folder of a run, --output or a new one in runs/, holds config.yaml, metrics.csv, results.json,
returns.png, TensorBoard events and checkpoints. Ctrl-C ends a run with a checkpoint, and
--resume last --output FOLDER continues it. diffpolicy list shows all methods."""


def main(words: list[str]) -> int:
    """Train; returns the exit code."""
    if not words or words[0] in ("-h", "--help"):
        Arguments("train", _DESCRIPTION).print_help(sys.stdout)
        return 0
    named = not words[0].startswith("-")
    name, flags = (words[0], words[1:]) if named else (_method_of(words), words)

    known = [method.name for method in methods()]
    if name not in known and ":" not in name:
        advice = did_you_mean(name, known, f"methods are {', '.join(known)}.")
        Arguments("train").error(f"there is no method {name}; {advice}")

    # Here, because these import torch.
    from diffpolicy.trainers import METHODS, run_script

    method = METHODS[name] if name in METHODS else _own(name)
    return run_script(
        method, flags, prog=f"diffpolicy train {name}" if named else "diffpolicy train"
    )


def _method_of(words: list[str]) -> str:
    """The method that the file of ``--config`` names."""
    from diffpolicy.trainers.io.config_file import METHOD_KEY, method_of

    files = [following for word, following in pairwise(words) if word == "--config"]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    parser = Arguments("train")
    try:
        name = method_of(files[0]) if files else None
    except ArgumentError as error:
        parser.error(f"--config {error.value} {error.problem}")
    if name is None:
        hint = f"; or write `{METHOD_KEY}: dime` into {files[0]}" if files else ""
        parser.error(f"METHOD is missing, such as dime in `diffpolicy train dime`{hint}.")
    return str(name)


def _own(name: str) -> "Method":
    """A method of the user's own, by ``module:NAME``."""
    from diffpolicy.trainers import Method

    module_name, _, attribute = name.partition(":")
    parser = Arguments("train")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        parser.error(f"{name} names a module that cannot be imported: {error}.")
    except AttributeError:
        parser.error(f"{name}: the module {module_name} has no {attribute}.")
    if not isinstance(found, Method):
        parser.error(f"{name} must be a diffpolicy.trainers.Method, got {found!r}.")
    return found
