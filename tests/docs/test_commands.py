"""Lines with ``diffpolicy`` in the pages are accepted by the command: flags exist, values fit."""

import importlib
import re
import shlex
from typing import Any

import pytest
from documented import PAGES, name_of

from diffpolicy.cli import COMMANDS, offline
from diffpolicy.cli.arguments import Arguments
from diffpolicy.trainers import METHODS
from diffpolicy.trainers.run.cli import parse_config
from diffpolicy.trainers.run.parser import Parser

_COMMAND = re.compile(r"^(?: {4}|> )(?:\w+=\S+ )*(?:torchrun .* -m )?diffpolicy (.*)$")


class ParsedError(Exception):
    """Raised in the place of what a subcommand would do."""


def commands() -> list[tuple[str, str]]:
    """Pages, and the words after ``diffpolicy`` of indented lines that begin with it."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text())
        matches = (_COMMAND.match(line) for line in text.splitlines())
        found += [(name_of(page), match[1]) for match in matches if match]
    return sorted(set(found))


def test_there_are_commands() -> None:
    subcommands = {words.split()[0] for _, words in commands()}
    assert subcommands >= {"train", "eval"}
    assert {words.split()[1] for _, words in commands() if words.startswith("train ")} >= set(
        METHODS
    )


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_is_accepted(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *words = shlex.split(line, comments=True)
    assert name in COMMANDS or name.startswith("--")
    if name == "train" and words[0] == "--config":
        words = [
            "dime",
            *words[2:],
        ]  # there is no file; flags that override it are those of any run
    if name == "train" and words[0] in METHODS:
        accepted_options(words[0], words[1:])
    elif name == "offline":
        _, args, flags = offline.parsed(words)
        accepted_options(args.method, flags)
    elif name in COMMANDS:
        parse = Arguments.parse_args

        def parse_only(parser: Arguments, *args: Any, **kwargs: Any) -> None:
            parse(parser, *args, **kwargs)
            raise ParsedError

        monkeypatch.setattr(Arguments, "parse_args", parse_only)
        with pytest.raises(ParsedError):
            importlib.import_module(f"diffpolicy.cli.{COMMANDS[name].module}").main(words)


def accepted_options(method: str, flags: list[str]) -> None:
    parser = Parser(METHODS[method].config)
    if "--help" in flags or "--print-config" in flags:
        return
    given = parser.parse_options(flags)
    # It names a run that only a reader has.
    given.pop("resume", None)
    config, _ = parse_config(METHODS[method].config, given)
    assert {k: getattr(config, k) for k in given} == given
