"""Dataclass fields that are options of a run: their help text, range, choices and default.

A group of options is a class with :func:`option` fields. A configuration lists the groups that it
is made of as its bases, which share no option, and says which defaults it changes:

    @configuration(prior_std=2.5)
    class MyConfig(OffPolicyConfig, ProcessOptions): ...
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field
from typing import Any, TypeVar

from diffpolicy.errors import ArgumentError
from diffpolicy.names import plain

ClassT = TypeVar("ClassT", bound=type[Any])


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
    """A dataclass field that is an option.

    Args:
        default: value when the option is not given.
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


@dataclasses.dataclass(frozen=True)
class Changed:
    """An inherited option with another default, and other metadata where it is given."""

    default: Any
    metadata: Mapping[str, Any]


def changed(default: Any, **metadata: Any) -> Changed:
    """For :func:`configuration`: a default with further changes, named as in :func:`option`."""
    if "text" in metadata:
        metadata["help"] = metadata.pop("text")
    return Changed(default, metadata)


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, option)
)
def configuration(**changes: Any) -> Callable[[ClassT], ClassT]:
    """A class decorator: a frozen dataclass, with other defaults for some inherited options.

    Args:
        changes: defaults, or :func:`changed`, by the name of the option.

    Raises:
        TypeError: if no base has an option of this name.
    """

    def decorate(cls: ClassT) -> ClassT:
        inherited = _inherited_fields(cls)
        for name, change in changes.items():
            if name not in inherited:
                raise TypeError(f"{cls.__name__} has no option {name!r} whose default it changes.")
            field = inherited[name]
            change = change if isinstance(change, Changed) else Changed(change, {})
            metadata = {**field.metadata, **change.metadata}
            setattr(cls, name, dataclasses.field(default=change.default, metadata=metadata))
            cls.__annotations__ = {**inspect.get_annotations(cls), name: field.type}
        made: ClassT = dataclasses.dataclass(frozen=True, kw_only=True)(cls)  # type: ignore[assignment]
        return made

    return decorate


def _inherited_fields(cls: type[Any]) -> dict[str, Field[Any]]:
    return {
        field.name: field
        for base in reversed(cls.__mro__[1:])
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The base of all groups of options.

    A group checks what its own options say about each other in ``__post_init__``, after it has
    called that of ``super()``.
    """

    def __post_init__(self) -> None:
        """Check every option against its type, range and choices.

        Raises:
            ValueError: one sentence that names the flag, the value given and what would work.
        """
        shapes = shapes_of(type(self))
        for field in fields_of(type(self)):
            value = getattr(self, field.name)
            for word in value if isinstance(value, tuple) else (value,):
                _check_word(field, shapes[field.name].kind, word)

    @classmethod
    def choices_of(cls, name: str) -> Sequence[str]:
        """The words that this class allows for an option."""
        choices: Sequence[str] = cls.__dataclass_fields__[name].metadata["choices"]
        return choices

    def plain(self) -> dict[str, Any]:
        """All options as plain data: Python objects by name, as :func:`diffpolicy.names.plain`."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def fixed_options(self) -> dict[str, Any]:
        """The options that a resumed run must keep, by flag, as plain data."""
        return {
            flag_name(field.name): plain(getattr(self, field.name))
            for field in fields_of(type(self))
            if field.metadata["fixed"]
        }


def _check_word(field: Field[Any], kind: type[Any], word: Any) -> None:
    """Check a value, or one of several, of an option whose values are of ``kind``."""
    flag, valid, choices = flag_name(field.name), field.metadata["valid"], field.metadata["choices"]
    if word is None:
        return
    if kind is bool and not isinstance(word, bool):
        raise ValueError(f"{flag} must be true or false, got {word!r}.")
    if valid is not None and not (math.isfinite(word) and valid.holds(word)):
        raise ValueError(f"{flag} must be {valid.words}, got {word}.")
    if kind is int and (isinstance(word, bool) or word != int(word)):
        raise ValueError(f"{flag} must be a whole number, got {word}.")
    if choices is not None and word not in choices:
        raise ValueError(f"{flag} must be one of {', '.join(choices)}, got {word!r}.")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the values of an option look like.

    Attributes:
        kind: ``int``, ``float``, ``bool``, ``str`` or ``dict``: the type of a value, or of each of
            several.
        length: how many values there are: 1, a fixed number, or None for any number.
        optional: whether None is a value, too.
    """

    kind: type[Any]
    length: int | None
    optional: bool


def shapes_of(cls: type[Any]) -> dict[str, Shape]:
    """What the values of each option of a class look like, from its annotations."""
    hints = typing.get_type_hints(cls)
    return {field.name: _shape(hints[field.name]) for field in fields_of(cls)}


def _shape(hint: Any) -> Shape:
    optional = False
    if isinstance(hint, types.UnionType):
        # Of several types the first one is that of the command line; others are for Python.
        optional = types.NoneType in typing.get_args(hint)
        hint = next(member for member in typing.get_args(hint) if member is not types.NoneType)
    members = typing.get_args(hint) if typing.get_origin(hint) is tuple else (hint,)
    length = None if Ellipsis in members else len(members)
    if isinstance(members[0], types.UnionType):
        members = typing.get_args(members[0])
    origin = typing.get_origin(members[0])
    kind = str if origin is typing.Literal else origin or members[0]
    return Shape(kind, length, optional)


def fields_of(cls: type[Any]) -> list[Field[Any]]:
    """The options of a class, in the order of their declaration."""
    return [field for field in dataclasses.fields(cls) if "help" in field.metadata]


def groups_of(cls: type[Any]) -> Iterator[tuple[str, list[Field[Any]]]]:
    """Titles of the groups of a class and their options; each is in the group that declares it."""
    left = {field.name: field for field in fields_of(cls)}
    for owner in _bases_first(cls):
        found = [left.pop(name) for name in inspect.get_annotations(owner) if name in left]
        if found:
            yield (owner.__doc__ or owner.__name__).splitlines()[0].rstrip("."), found


def _bases_first(cls: type[Any]) -> Iterator[type[Any]]:
    for base in cls.__bases__:
        yield from _bases_first(base)
    yield cls


# Options that have another name where the rule about them is known.
_OPTIONS = {
    "name": "env",
    "wrappers": "env_wrapper",
    "source": "env_source",
    "backend": "collector",
    "prioritized": "prioritized_replay",
    "initial": "temperature",
}


def in_flags(error: ValueError) -> str:
    """The sentence of an error as the command line shows it: with the flag of the argument."""
    if not isinstance(error, ArgumentError):
        return str(error)
    flag = flag_name(_OPTIONS.get(error.argument, error.argument))
    value = error.value
    words = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    # A switch has no value on the command line.
    return f"{flag} {error.problem}" if value is True else f"{flag} {words} {error.problem}"


def flag_name(name: str) -> str:
    """The command line spelling of an option: ``--total-frames`` for ``total_frames``."""
    return "--" + name.replace("_", "-")


def flags_text(values: Mapping[str, Any]) -> str:
    """Options by name as flags with their values, for the help of a preset."""
    return ", ".join(f"{flag_name(name)} {value}" for name, value in values.items())
