"""The command ``diffpolicy``: one module for each subcommand, imported when it is called.

Nothing here, and no ``--help`` but that of a method, imports torch.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from diffpolicy import __version__
from diffpolicy.errors import ArgumentError, check_not_hidden, did_you_mean, how_to_install

EXIT_WRONG = 2


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: the module here whose ``main`` takes the words after the subcommand.
        summary: what it does.
    """

    module: str
    summary: str


COMMANDS = {
    "train": Command("train", "train a method; its options are flags, or a YAML file"),
    "eval": Command("evaluate", "returns of a trained policy, in fresh episodes"),
    "plot": Command("plot", "curves of several runs and seeds, and a table"),
    "play": Command("play", "watch a trained policy in a window"),
    "record": Command("record", "a video (mp4 or gif) of a trained policy"),
    "sweep": Command("sweep", "search for options with Optuna"),
    "demonstrate": Command("demonstrate", "episodes of trained policies, as a data set"),
    "clone": Command("clone", "behaviour cloning of a data set, for train --init-from"),
    "offline": Command("offline", "train an off-policy method on a data set alone"),
    "export": Command("export", "a policy as an ONNX file, or by torch.export"),
    "push": Command("push", "upload a policy to the Hugging Face hub"),
    "pull": Command("pull", "download a policy from the hub"),
    "list": Command("listing", "methods, tasks, presets, and policies that come with the package"),
}
"""All subcommands by name."""


def help_text() -> str:
    """What ``diffpolicy --help`` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: diffpolicy COMMAND [options]",
            "",
            "Maximum-entropy reinforcement learning with diffusion policies.",
            "",
            *lines,
            "",
            "diffpolicy COMMAND --help tells more, and so does diffpolicy train METHOD --help.",
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code; 2, and one line on stderr, if it is wrong.

    Args:
        argv: the words after ``diffpolicy``; None takes ``sys.argv``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"diffpolicy {__version__}\n")
        return 0
    name = words[0]
    if name not in COMMANDS:
        advice = did_you_mean(name, COMMANDS, "diffpolicy --help lists all commands.")
        return _wrong("diffpolicy", f"there is no command {name}; {advice}")
    # Modules of the current folder are found, after everything that is installed.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return _run(name, words[1:])


def _run(name: str, words: list[str]) -> int:
    """Import the module of a subcommand and run it."""
    try:
        check_not_hidden()
        module = importlib.import_module(f"diffpolicy.cli.{COMMANDS[name].module}")
        code: int = module.main(words)
        sys.stdout.flush()
        return code
    except ArgumentError as error:
        return _wrong(f"diffpolicy {name}", str(error))
    except ImportError as error:
        line = how_to_install(error)
        if line is None and type(error) is not ImportError:
            raise
        return _wrong(f"diffpolicy {name}", line or str(error))
    except BrokenPipeError:
        # Whoever reads (head, less) has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _wrong(prog: str, line: str) -> int:
    sys.stderr.write(f"{prog}: error: {' '.join(line.split())}\n")
    return EXIT_WRONG
