"""Dataclass fields that are command line flags, with their help text and valid range."""

import argparse
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any, NoReturn, TypeVar

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class Range:
    """A test on numbers together with the words that describe it."""

    holds: Callable[[float], bool]
    words: str


def at_least(low: float) -> Range:
    """Numbers of ``low`` and above."""
    return Range(lambda value: value >= low, f"at least {low}")


def above(low: float) -> Range:
    """Numbers strictly greater than ``low``."""
    return Range(lambda value: value > low, f"greater than {low}")


def finite() -> Range:
    """All numbers but NaN and the infinities."""
    return Range(math.isfinite, "a finite number")


def between(low: float, high: float) -> Range:
    """Numbers from ``low`` to ``high``, both included."""
    return Range(lambda value: low <= value <= high, f"between {low} and {high}")


def option(
    default: Any,
    text: str,
    *,
    valid: Range | None = None,
    choices: Sequence[str] | None = None,
    metavar: Sequence[str] | None = None,
    fixed: bool = False,
) -> Any:
    """A dataclass field that is also a command line flag.

    Args:
        default: value when the flag is not given.
        text: what ``--help`` shows.
        valid: range of a numeric option.
        choices: values of a text option.
        metavar: what ``--help`` calls the words of an option that takes several at once.
        fixed: whether the option shapes the networks, so that a resumed run must keep it.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": text,
            "valid": valid,
            "choices": choices,
            "metavar": metavar,
            "fixed": fixed,
        },
    )


def changed(owner: Any, name: str, default: Any, text: str | None = None) -> Any:
    """The option ``name`` of another configuration class, with a default (and text) of its own."""
    metadata = owner.__dataclass_fields__[name].metadata
    return dataclasses.field(
        default=default, metadata=metadata if text is None else {**metadata, "help": text}
    )


def fixed_options(config: Any) -> dict[str, Any]:
    """The options that a resumed run must keep, by flag."""
    return {
        flag_name(field.name): getattr(config, field.name)
        for field in _options(type(config))
        if field.metadata["fixed"]
    }


def flag_name(name: str) -> str:
    """The command line spelling of a field: ``--total-frames`` for ``total_frames``."""
    return "--" + name.replace("_", "-")


def check_options(config: Any) -> None:
    """Check every option of a dataclass against its range and choices.

    Raises:
        ValueError: one sentence that names the flag, the value given and what would work.
    """
    for field in _options(type(config)):
        value = getattr(config, field.name)
        valid, choices = field.metadata["valid"], field.metadata["choices"]
        for word in value if isinstance(value, tuple) else (value,):
            known = valid is None or word is None or (math.isfinite(word) and valid.holds(word))
            if valid is not None and not known:
                raise ValueError(f"{flag_name(field.name)} must be {valid.words}, got {word}.")
            if choices is not None and word not in choices:
                raise ValueError(
                    f"{flag_name(field.name)} must be one of {', '.join(choices)}, got {word!r}."
                )


class Parser(argparse.ArgumentParser):
    """An argument parser whose error message is one line, without the list of all flags."""

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(config_class: type[Any], description: str | None = None) -> Parser:
    """Build the command line of a configuration class, one group of flags per class."""
    parser = Parser(
        description=description,
        usage="%(prog)s [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config_class)
    classes = config_class.__mro__[::-1]
    # A class may replace a default of its base.
    owners = {name: owner for owner in classes for name in inspect.get_annotations(owner)}
    for owner in classes:
        group = parser.add_argument_group(
            (owner.__doc__ or owner.__name__).splitlines()[0].rstrip(".")
        )
        for field in _options(config_class):
            if owners[field.name] is owner:
                _add_flag(group, field, hints[field.name])
    return parser


def parse_options(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """The options given on the command line, and only those."""
    given = vars(parser.parse_args(argv))
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _options(config_class: type[Any]) -> list[Field[Any]]:
    return [field for field in dataclasses.fields(config_class) if "help" in field.metadata]


def _add_flag(group: argparse._ArgumentGroup, field: Field[Any], hint: Any) -> None:
    default = field.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    text = field.metadata["help"] + ("" if default is None else f" (default: {default})")
    settings: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    plain = _without_none(hint)
    if plain is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        members = typing.get_args(plain) if typing.get_origin(plain) is tuple else ()
        repeatable = Ellipsis in members
        scalar = members[0] if members else plain
        # The words that a Literal allows are checked with the other choices.
        settings["type"] = str if typing.get_origin(scalar) is typing.Literal else scalar
        settings["action"] = "append" if repeatable else "store"
        if members and not repeatable:
            settings["nargs"] = len(members)
            settings["metavar"] = field.metadata["metavar"]
        if field.metadata["choices"]:
            settings["metavar"] = "|".join(field.metadata["choices"])
    group.add_argument(flag_name(field.name), **settings)


def _without_none(hint: Any) -> Any:
    """``int`` for ``int | None``; any other type unchanged."""
    if isinstance(hint, types.UnionType):
        return next(member for member in typing.get_args(hint) if member is not types.NoneType)
    return hint
