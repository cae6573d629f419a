"""Python objects by the name of their module, and configurations as plain data.

The standard library only, so that reading a command line stays fast.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from diffpolicy.errors import ArgumentError

#: What a value begins with that stands for an object without a name.
UNNAMED = "python object "
_PLAIN = (bool, int, float, str)


def imported(module: str, argument: str, value: object) -> ModuleType:
    """The module, which may be a file of the current folder.

    The current folder comes last, so that no file in it hides an installed package.

    Args:
        module: its dotted name.
        argument: what an error calls the argument that names it.
        value: the value of that argument.

    Raises:
        ArgumentError: there is no such module, or it needs another one that is missing.
    """
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ArgumentError(
            argument,
            value,
            f"names the module {module!r}, which cannot be imported ({error}); install it, or go "
            "to the folder that holds it.",
        ) from error


def named_object(name: str, argument: str) -> Any:
    """The object of a name such as ``my_package.networks:Encoder``.

    Args:
        name: a module, a colon, and the name of an object in it.
        argument: what an error calls the argument that has this value.

    Raises:
        ArgumentError: there is no such module or object; names close ones.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        problem = "must be module:Name, for example my_package.my_module:MyClass."
        raise ArgumentError(argument, name, problem)
    found: Any = imported(module_name, argument, name)
    for part in path.split("."):
        if not hasattr(found, part):
            hint = close_matches(part, [own for own in vars(found) if not own.startswith("_")])
            problem = f"names {part!r}, which {module_name} does not have"
            raise ArgumentError(argument, name, f"{problem}{'; ' if hint else ''}{hint}.")
        found = getattr(found, part)
    return found


def name_of(value: object) -> str | None:
    """``module:Name`` of a class or a function that a fresh process can import; None if it can't.

    Examples:
        >>> name_of(ArgumentError)
        'diffpolicy.errors:ArgumentError'
        >>> print(name_of(lambda: 0))
        None
    """
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str) or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return f"{module}:{path}" if found is value else None


def plain(value: Any) -> Any:
    """A value as text, numbers, lists and dictionaries: objects become their names.

    An object without a name becomes a text that begins with :data:`UNNAMED`.
    """
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy
        return plain(value.tolist())
    return name_of(value) or UNNAMED + _described(value)


def unnamed(value: Any) -> str | None:
    """The description of an object without a name in plain data; None if there is none."""
    if isinstance(value, str):
        return value.removeprefix(UNNAMED) if value.startswith(UNNAMED) else None
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, tuple, list)):
        return None
    return next((found for found in map(unnamed, items) if found), None)


def shown(value: Any) -> str:
    """What messages, titles and folders call a value: its name, or that of its class."""
    found = plain(value)
    return found.removeprefix(UNNAMED) if isinstance(found, str) else str(found)


def close_matches(name: str, known: Any) -> str:
    """Say which of the ``known`` names could be meant; empty if none."""
    by_lower_case = {key.lower(): key for key in known}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.6)
    if not matches:
        return ""
    return "close matches: " + ", ".join(by_lower_case[match] for match in matches)


def _described(value: object) -> str:
    """The same words in every process, so that two runs can be compared."""
    function = getattr(value, "func", value)  # of a functools.partial
    name = getattr(function, "__qualname__", None)
    if name is None:
        name = type(function).__qualname__
    return f"{type(value).__name__} {name}" if function is not value else str(name)
