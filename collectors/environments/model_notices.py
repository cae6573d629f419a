"""Notices of MuJoCo about the models of Gymnasium's tasks, which no user of a task can act on."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mujoco

# MuJoCo says so from 3.16 on of the model of HalfCheetah.
_KNOWN = ("compiler attribute 'settotalmass' is deprecated",)


@contextmanager
def known_notices_hidden() -> Iterator[None]:
    """Keep what is known about the models of Gymnasium's tasks off the console; all else is shown.

    MuJoCo prints it for every copy of an environment, wherever it is built.
    """
    getter = getattr(mujoco, "get_mju_user_warning", None)
    setter = getattr(mujoco, "set_mju_user_warning", None)
    if getter is None or setter is None:  # before 3.2
        yield
        return
    before = getter()
    setter(partial(_show_unknown, before))
    try:
        yield
    finally:
        setter(before)


def _show_unknown(before: Callable[[Any], None] | None, text: str) -> None:
    if any(known in text for known in _KNOWN):
        return
    if before is None:
        sys.stderr.write(f"WARNING: {text}\n")
    else:
        # dm_control has a function of C there (by ctypes), which takes bytes.
        before(text.encode() if hasattr(before, "argtypes") else text)
