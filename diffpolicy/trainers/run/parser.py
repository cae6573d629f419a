"""The command line of a configuration, parsed by jsonargparse.

Flags are spelled with dashes or underscores, repeated for options that take any number of values,
and read from YAML files, too: ``--config run.yaml``, before or after which flags override it.
"""

import argparse
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field
from typing import Any, NoReturn

import jsonargparse
import yaml

from diffpolicy.errors import did_you_mean
from diffpolicy.trainers.config.options import (
    Shape,
    fields_of,
    flag_name,
    groups_of,
    shapes_of,
)
from diffpolicy.trainers.io import console
from diffpolicy.trainers.io.config_file import METHOD_KEY

# What --help calls a value.
_WORDS = {int: "N", float: "X", str: "TEXT", dict: "YAML"}


class Parser(jsonargparse.ArgumentParser):
    """An argument parser whose error message is one line, without the list of all flags.

    Args:
        config_class: the configuration; each of its options is a flag.
        description: text at the top of ``--help``.
        prog: name of the program (default: that of the script).
    """

    def __init__(
        self, config_class: type[Any], description: str | None = None, prog: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            usage="%(prog)s [options]",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            print_config=None,
        )
        self.fields = fields_of(config_class)
        self.shapes = shapes_of(config_class)
        #: The flags that have been repeated so far.
        self.repeated: set[str] = set()
        self.add_argument("--config", action="config", help="YAML file with flags and their values")
        self.add_argument(
            "--print-config",
            action="store_true",
            help="print all options as a YAML file, and end",
        )
        #: Whether the options are to be printed.
        self.print_only = False
        # A file says which method its options are for.
        method = _of_method(getattr(config_class, "method", ""))
        self.add_argument(f"--{METHOD_KEY}", type=method, help=argparse.SUPPRESS)
        for title, fields in groups_of(config_class):
            group = self.add_argument_group(title)
            for field in fields:
                settings = _settings(field, self.shapes[field.name])
                if settings.get("action") is _Repeated:
                    settings["repeated"] = self.repeated
                group.add_argument(flag_name(field.name), **settings)

    def parse_options(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """The options given on the command line and in files, and only those.

        Args:
            argv: the words after the program's name; None takes ``sys.argv``.

        Raises:
            SystemExit: with code 2 and one line on the console, for wrong flags.
        """
        self.repeated.clear()
        words = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
        several = {flag_name(name) for name, shape in self.shapes.items() if shape.length is None}
        words = _one_by_one(words, several)
        try:
            given = vars(self.parse_args(words, defaults=False))
            self.print_only = bool(given.get("print_config"))
            return {
                field.name: _value(field.name, given[field.name], self.shapes[field.name])
                for field in self.fields
                if field.name in given
            }
        except argparse.ArgumentTypeError as error:
            self.error(str(error))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print ``message`` in one line, with a suggestion for an unknown flag, and exit with 2."""
        line = re.sub(r'^Parser key "(\w+)"', lambda m: flag_name(m[1]), " ".join(message.split()))
        word = re.search(r"unrecognized arguments: (\S+)", line)
        entry = re.search(r"Option '(\S+)' is not accepted", line)
        if word is not None:
            line = self._unknown(word[1].partition("=")[0])
        elif entry is not None:
            line = self._unknown(flag_name(entry[1]))
        # A message of ours names the flag itself.
        own = re.search(r": (--\S+ must be .*)", line)
        self.exit(2, f"{self.prog}: error: {line if own is None else own[1]}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Print ``message`` on stderr and leave."""
        console.STDERR.write(message or "")
        raise SystemExit(status)

    def print_help(self, file: Any = None) -> None:
        """Print all flags on stdout, or into ``file``."""
        (console.STDOUT if file is None else file).write(self.format_help())

    def _unknown(self, word: str) -> str:
        """What is wrong with a word, and which flag may have been meant."""
        if not word.startswith("--"):
            return f"{word} belongs to no flag; --help lists all flags."
        flags = ["--config", "--print-config", *(flag_name(field.name) for field in self.fields)]
        return f"there is no flag {word}; {did_you_mean(word, flags, '--help lists all flags.')}"


class _Repeated(argparse.Action):
    """Collects the values of a flag that is repeated; the first one replaces those of a file.

    Args:
        repeated: names of the flags that have been repeated in this parse.
    """

    def __init__(self, *args: Any, repeated: set[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.repeated = repeated

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        earlier = getattr(namespace, self.dest) if self.dest in self.repeated else []
        self.repeated.add(self.dest)
        setattr(namespace, self.dest, [*earlier, values])


def _of_method(name: str) -> Callable[[str], str]:
    """What reads the method that a file is for."""

    def read(word: str) -> str:
        if word != name:
            raise argparse.ArgumentTypeError(
                f"{flag_name(METHOD_KEY)} must be {name}, which is what runs here, got {word!r}."
            )
        return word

    return read


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _one_by_one(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """``--flag a b`` as ``--flag a --flag b``, for flags that take several values."""
    found: list[str] = []
    flag, values = "", 0
    for word in words:
        if word.startswith("--"):
            flag, values = word, 0
        elif flag in flags:
            values += 1
            if values > 1:
                found.append(flag)
        found.append(word)
    return found


def _settings(field: Field[Any], shape: Shape) -> dict[str, Any]:
    """What ``add_argument`` is told about an option."""
    default = field.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    text = field.metadata["help"] + ("" if default is None else f" (default: {default})")
    settings: dict[str, Any] = {"help": text.replace("%", "%%")}
    if shape.kind is bool:
        return settings | {"action": argparse.BooleanOptionalAction}
    settings["type"] = _each(_reader(flag_name(field.name), shape))
    settings["metavar"] = _WORDS[shape.kind]
    if shape.length is None:
        settings["action"] = _Repeated
    elif shape.length > 1:
        settings |= {"nargs": shape.length, "metavar": field.metadata["metavar"]}
    if field.metadata["choices"]:
        settings["metavar"] = "|".join(field.metadata["choices"])
    if shape.length is None:
        settings["metavar"] += " ..."
    return settings


def _reader(flag: str, shape: Shape) -> Callable[[Any], Any]:
    """What makes a value of a word on the command line or an entry of a file."""
    words = {int: "a whole number", float: "a number", dict: "names and values in YAML or JSON"}

    def read(word: Any) -> Any:
        if word is None and shape.optional:
            return None
        try:
            if shape.kind is dict:
                return _mapping(word)
            if isinstance(word, (dict, bool)):
                raise ValueError
            return _whole(word) if shape.kind is int else shape.kind(word)
        except (ValueError, OverflowError):
            kind = words.get(shape.kind, "text")
            raise argparse.ArgumentTypeError(f"{flag} must be {kind}, got {word!r}.") from None

    return read


def _mapping(word: Any) -> dict[str, Any]:
    """Names and values, also from YAML; ValueError for anything else."""
    if isinstance(word, str):
        try:
            word = yaml.safe_load(word)
        except yaml.YAMLError as error:
            raise ValueError from error
    if not isinstance(word, dict):
        raise ValueError
    return word


def _whole(word: Any) -> int:
    """An integer from ``7``, ``1_000`` or ``1e6``; ValueError for 1.5."""
    try:
        return int(str(word))
    except ValueError:
        number = float(word)
        if number != int(number):
            raise
        return int(number)


def _each(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same for lists: files have them, and jsonargparse reads all values a second time."""
    return lambda word: [read(item) for item in word] if isinstance(word, list) else read(word)


def _value(name: str, value: Any, shape: Shape) -> Any:
    """The value of an option: a tuple if it takes several, of which a file may give one alone."""
    if value is None:
        return None
    items = tuple(value) if isinstance(value, list) else (value,)
    if shape.length is not None and len(items) != shape.length:
        count = "one value" if shape.length == 1 else f"{shape.length} values"
        given = " ".join(map(str, items))
        raise argparse.ArgumentTypeError(f"{flag_name(name)} must be {count}, got {given}.")
    return items[0] if shape.length == 1 else items
