"""The configuration of a run as YAML, which ``--config`` reads back."""

from pathlib import Path
from typing import Any

import yaml

from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.options import groups_of
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.io import files

#: The name of the method in such a file, beside its options.
METHOD_KEY = "method"
# Where a run is kept is no part of what it does.
_LEFT_OUT = ("output", "resume")


def config_text(config: RunConfig) -> str:
    """All options of a run, with the versions that it was made with as comments.

    Where results go and what is resumed is left out: the same file gives the same run once more, in
    a new folder.
    """
    versions = ", ".join(f"{name} {version}" for name, version in files.versions().items())
    content: dict[str, Any] = {METHOD_KEY: config.method}
    plain = config.plain()
    for _, fields in groups_of(type(config)):
        values = {field.name: plain[field.name] for field in fields}
        content |= {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in _LEFT_OUT
        }
    text = yaml.safe_dump(content, sort_keys=False, width=100, default_flow_style=None)
    return f"# {versions}\n{text}"


def method_of(path: str | Path) -> str | None:
    """The method that a file names; None if it names none.

    Raises:
        ArgumentError: it cannot be read, or is no YAML file with names and values.
    """
    try:
        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError("config", str(path), f"cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise ArgumentError("config", str(path), f"is not a YAML file: {words}.") from error
    if content is not None and not isinstance(content, dict):
        raise ArgumentError("config", str(path), "must hold lines such as `total_frames: 10000`.")
    return (content or {}).get(METHOD_KEY)
