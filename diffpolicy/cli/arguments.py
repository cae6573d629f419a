"""The argument parser of the subcommands that have few flags; without torch."""

import argparse
import re
from typing import NoReturn

from diffpolicy.cli import COMMANDS, EXIT_WRONG
from diffpolicy.errors import ArgumentError, did_you_mean


class Arguments(argparse.ArgumentParser):
    """A parser whose error is one line, with a suggestion for an unknown flag.

    Args:
        command: name of the subcommand.
        description: text at the top of ``--help``; by default what the subcommand does.
    """

    def __init__(self, command: str, description: str | None = None) -> None:
        super().__init__(
            prog=f"diffpolicy {command}",
            description=description or f"{COMMANDS[command].summary}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print ``message`` in one line and exit with 2."""
        word = re.search(r"unrecognized arguments: (\S+)", message)
        if word is not None:
            name = word[1].partition("=")[0]
            message = f"there is no flag {name}; {did_you_mean(name, self.flags(), 'see --help.')}"
        self.exit(EXIT_WRONG, f"{self.prog}: error: {' '.join(message.split())}\n")

    def flags(self) -> list[str]:
        """All flags."""
        return [name for action in self._actions for name in action.option_strings]

    def refuse(self, error: ArgumentError) -> NoReturn:
        """Exit with 2 and the words of an error, with the flag instead of the argument."""
        flag = f"--{error.argument.replace('_', '-')}"
        named = flag in self.flags()
        self.error(f"{flag if named else error.argument} {error.value} {error.problem}")
