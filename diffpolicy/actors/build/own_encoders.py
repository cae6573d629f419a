"""Encoders as plain data: that of this package, and classes of one's own by their names."""

import functools
from typing import Any

from torch import nn

from diffpolicy.errors import ArgumentError
from diffpolicy.names import name_of, named_object, shown
from diffpolicy.networks import ImageEncoder, MakeEncoder

# What files call ImageEncoder.
_IMAGE_ENCODER = "cnn"
_PLAIN = (bool, int, float, str, type(None))


def plain_encoder(make: MakeEncoder | None) -> str | dict[str, Any] | None:
    """What builds an encoder, as plain data.

    Args:
        make: None, a class of :class:`torch.nn.Module` that can be imported, or a
            ``functools.partial`` of one whose arguments are numbers, text and their containers.

    Returns:
        ``"cnn"`` for :class:`ImageEncoder`, otherwise name and arguments.

    Raises:
        ArgumentError: for anything else, with the reason.
    """
    if make is None:
        return None
    if make is ImageEncoder:
        return _IMAGE_ENCODER
    problem = None
    given = make if isinstance(make, functools.partial) else functools.partial(make)
    arguments = {"args": list(given.args), "kwargs": dict(given.keywords)}
    if not _is_module(given.func):
        problem = (
            "is no class of torch.nn.Module; give a class that is built from the shape of an "
            "image, or functools.partial(Class, ...)"
        )
    elif name_of(given.func) is None:
        problem = "cannot be imported by its name; define it at the top of a module, not a script"
    elif not _is_plain(arguments):
        problem = "has arguments that are neither numbers nor text nor lists of these"
    if problem is not None:
        raise ArgumentError("encoder", shown(given.func), f"{problem}: a file has to describe it.")
    return {"name": name_of(given.func), **arguments}


def encoder_from_plain(data: Any) -> MakeEncoder | None:
    """What :func:`plain_encoder` has described; it is imported.

    Nothing but the constructor of a class of :class:`torch.nn.Module` is ever called.

    Raises:
        ArgumentError: if there is no such class here.
        ValueError: if this version cannot read it.
    """
    if data is None:
        return None
    if data == _IMAGE_ENCODER:
        return ImageEncoder
    if not isinstance(data, dict) or data.keys() != {"name", "args", "kwargs"}:
        raise ValueError(f"this version does not know the encoder {data!r}")
    found = named_object(data["name"], "encoder")
    if not _is_module(found):
        raise ArgumentError("encoder", data["name"], "is no class of torch.nn.Module.")
    return functools.partial(found, *data["args"], **data["kwargs"])


def _is_module(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
