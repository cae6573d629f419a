"""State of plain Python objects, as data that can be loaded without running code."""

import enum
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from collectors.errors import UnsupportedStateError
from collectors.state.leaf_state import LEAVES, load_leaf, load_view, save_leaf, save_view

_PLAIN = (bool, int, float, str)
_SEQUENCES = (list, set, deque)
_FROZEN = (tuple, frozenset)
_MAPPINGS = (dict, OrderedDict)
_CONSTANTS = (types.ModuleType, type, np.ufunc, np.dtype, range, slice)


class _Empty:
    """As large as an object whose state is all in its attributes."""


class _Absent:
    """Stands for what is not there."""


_ABSENT = _Absent()


class Special(NamedTuple):
    """How an object that is more than its attributes is saved and restored.

    Attributes:
        save: returns its state as plain data.
        load: checks such data and returns the call that restores it; changes nothing itself.
    """

    save: Callable[[], Any]
    load: Callable[[Any], Callable[[], None]]


class Rules(NamedTuple):
    """What belongs to the state.

    Attributes:
        attributes: names of the attributes of an object that belong to its state.
        special: for an object that is more than its attributes; ``None`` for any other.
    """

    attributes: Callable[[object], Iterable[str]]
    special: Callable[[object], Special | None]


class ObjectSaver:
    """Turns objects into plain data. What is found in several places is saved once.

    Args:
        rules: what belongs to the state.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._index: dict[int, int] = {}
        self._seen: list[object] = []  # keeps them alive: an id must not be given away again

    def save(self, value: Any, path: str) -> Any:
        """Return ``value`` as plain data.

        Args:
            value: any object.
            path: what errors call it.

        Raises:
            UnsupportedStateError: it holds something whose state cannot be saved.
        """
        if value is None or type(value) in _PLAIN:
            return value
        if isinstance(value, np.generic):
            return {"kind": "scalar", "leaf": save_leaf(np.asarray(value), path)}
        if isinstance(value, enum.Enum):
            return {"kind": "enum", "class": class_name(value), "name": value.name}
        if _is_constant(value):
            return {"kind": "constant", "name": _constant_name(value)}
        if type(value) in _FROZEN:
            return {"kind": type(value).__name__, "items": self._save_items(value, path)}
        if isinstance(value, partial):
            parts = (value.func, value.args, value.keywords)
            return {"kind": "partial", "items": self._save_items(parts, path)}
        if id(value) in self._index:
            return {"kind": "same", "index": self._index[id(value)]}
        if type(value) is np.ndarray and type(value.base) is np.ndarray:
            owner = self.save(value.base, path)
            self._remember(value)
            return {"kind": "view", "owner": owner, "view": save_view(value)}
        self._remember(value)
        return self._save_new(value, path)

    def _save_new(self, value: Any, path: str) -> Any:
        if type(value) in LEAVES:
            return {"kind": "leaf", "leaf": save_leaf(value, path)}
        if type(value) in _SEQUENCES:
            items = self._save_items(value, path)
            limit = value.maxlen if isinstance(value, deque) else None
            return {"kind": type(value).__name__, "items": items, "limit": limit}
        if type(value) in _MAPPINGS:
            keys = self._save_items(value, path)
            values = [self.save(item, f"{path}[{key!r}]") for key, item in value.items()]
            return {"kind": type(value).__name__, "keys": keys, "values": values}
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            items = self._save_items(cells, path)
            return {"kind": "function", "name": _constant_name(value), "items": items}
        return self._save_object(value, path)

    def _save_object(self, value: Any, path: str) -> Any:
        saved = {"kind": "object", "class": class_name(value)}
        special = self._rules.special(value)
        if special is not None:
            return saved | {"special": special.save()}
        _check_supported(value, path)
        attributes = vars(value)
        return saved | {
            "attributes": {
                name: self.save(attributes[name], f"{type(value).__name__}.{name}")
                for name in self._rules.attributes(value)
            }
        }

    def _save_items(self, items: Iterable[Any], path: str) -> list[Any]:
        return [self.save(item, f"{path}[{index}]") for index, item in enumerate(items)]

    def _remember(self, value: object) -> None:
        self._index[id(value)] = len(self._seen)
        self._seen.append(value)


class ObjectLoader:
    """Turns plain data into the objects that it was made of.

    Objects with attributes are not made anew: those that are there now take the state.

    Args:
        rules: those that the state was saved with.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._seen: list[Any] = []
        self._taken: set[int] = set()
        self._changes: list[Callable[[], object]] = []

    def finish(self) -> None:
        """Change the objects that the state is loaded into, all of them. Nothing changes before."""
        for change in self._changes:
            change()

    def load(self, saved: Any, current: Any, path: str) -> Any:
        """Return what :meth:`ObjectSaver.save` was given.

        Args:
            saved: plain data.
            current: what is there now.
            path: what errors call it.

        Raises:
            UnsupportedStateError: the state is that of an object of another kind.
        """
        if saved is None or type(saved) in _PLAIN:
            return saved
        kind = saved["kind"]
        if kind == "same":
            return self._seen[saved["index"]]
        if kind in ("object", "function"):
            return self._load_into(saved, current, path)
        if kind == "constant":
            _check_same(saved["name"], current, _constant_name, path)
            return current
        if kind == "enum":
            _check_same(saved["class"], current, class_name, path)
            return type(current)[saved["name"]]
        if kind == "scalar":
            return load_leaf(saved["leaf"])[()]
        if kind == "partial":
            return self._load_partial(saved, current, path)
        if kind in ("tuple", "frozenset"):
            items = self._load_items(saved["items"], current, path)
            return tuple(items) if kind == "tuple" else frozenset(items)
        if kind in ("leaf", "view"):
            value = self._load_array(saved, current, path)
            self._seen.append(value)
            return value
        return self._load_container(saved, current, path)

    def _load_array(self, saved: Any, current: Any, path: str) -> Any:
        if saved["kind"] == "leaf":
            return load_leaf(saved["leaf"])
        return load_view(saved["view"], self.load(saved["owner"], _ABSENT, path))

    def _load_container(self, saved: Any, current: Any, path: str) -> Any:
        make: dict[str, Callable[[], Any]] = {
            "list": list,
            "set": set,
            "deque": partial(deque, maxlen=saved.get("limit")),
            "dict": dict,
            "OrderedDict": OrderedDict,
        }
        container = make[saved["kind"]]()
        self._seen.append(container)
        if "keys" in saved:
            keys = self._load_items(saved["keys"], (), path)
            known = current if isinstance(current, dict) else {}
            for key, value in zip(keys, saved["values"], strict=True):
                container[key] = self.load(value, known.get(key, _ABSENT), f"{path}[{key!r}]")
            return container
        items = self._load_items(saved["items"], current, path)
        container.update(items) if isinstance(container, set) else container.extend(items)
        return container

    def _load_partial(self, saved: Any, current: Any, path: str) -> Any:
        parts = (
            (current.func, current.args, current.keywords) if isinstance(current, partial) else ()
        )
        function, arguments, keywords = self._load_items(saved["items"], parts, path)
        return partial(function, *arguments, **keywords)

    def _load_items(self, saved: list[Any], current: Any, path: str) -> list[Any]:
        known = list(current) if isinstance(current, (list, tuple, deque)) else []
        known += [_ABSENT] * (len(saved) - len(known))
        return [self.load(item, known[i], f"{path}[{i}]") for i, item in enumerate(saved)]

    def _load_into(self, saved: Any, current: Any, path: str) -> Any:
        self._seen.append(current)
        if id(current) in self._taken:
            raise UnsupportedStateError(
                f"the saved state does not fit: {path} was an object of its own, but is one that "
                "is also found elsewhere here."
            )
        self._taken.add(id(current))
        if saved["kind"] == "function":
            self._load_function(saved, current, path)
        else:
            self._load_object(saved, current, path)
        return current

    def _load_function(self, saved: Any, current: Any, path: str) -> None:
        _check_same(saved["name"], current, _constant_name, path)
        cells = current.__closure__ or ()
        contents = [cell.cell_contents for cell in cells]
        loaded = self._load_items(saved["items"], contents, path)
        for cell, value in zip(cells, loaded, strict=True):
            self._changes.append(partial(setattr, cell, "cell_contents", value))

    def _load_object(self, saved: Any, current: Any, path: str) -> None:
        _check_same(saved["class"], current, class_name, path)
        special = self._rules.special(current)
        if special is not None:
            self._changes.append(special.load(saved["special"]))
            return
        loaded = {}
        for name, value in saved["attributes"].items():
            there = vars(current).get(name, _ABSENT)
            loaded[name] = self.load(value, there, f"{type(current).__name__}.{name}")
        self._changes.append(partial(self._set_attributes, current, loaded))

    def _set_attributes(self, current: object, loaded: dict[str, Any]) -> None:
        for name in set(self._rules.attributes(current)) - set(loaded):
            del vars(current)[name]
        vars(current).update(loaded)


def class_name(value: object) -> str:
    """Name of the class of ``value``, with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _is_constant(value: Any) -> bool:
    """Whether nothing can change ``value``; a built-in method belongs to something that can."""
    if isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, types.ModuleType | None)
    return isinstance(value, _CONSTANTS)


def _constant_name(value: Any) -> str:
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    return value.__name__ if isinstance(value, types.ModuleType) else repr(value)


def _check_supported(value: object, path: str) -> None:
    """Raise UnsupportedStateError unless the state of ``value`` is all in its attributes."""
    if hasattr(value, "__dict__") and type(value).__basicsize__ == _Empty.__basicsize__:
        return
    raise UnsupportedStateError(
        f"the state of {path} cannot be saved: it is a {class_name(value)}, which keeps its state "
        "outside of Python attributes; keep numbers, strings, NumPy arrays and generators there, "
        "or containers and plain objects of them."
    )


def _check_same(saved: str, current: object, name: Callable[[Any], str], path: str) -> None:
    there = "missing" if current is _ABSENT else f"a {name(current)}"
    if there != f"a {saved}":
        raise UnsupportedStateError(
            f"the saved state does not fit: {path} was a {saved}, but is {there} here; load it "
            "into an environment that was built in the same way."
        )
