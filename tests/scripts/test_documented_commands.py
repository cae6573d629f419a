"""Commands in the documents and in the scripts' own help are accepted."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from diffpolicy.trainers import METHODS
from diffpolicy.trainers.run.cli import parse_config
from diffpolicy.trainers.run.parser import Parser

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "benchmarks" / "README.md",
    *sorted((ROOT / "examples").rglob("*.py")),
]
SCRIPT = re.compile(r"(?:python examples/(\w+)_lightning\.py|diffpolicy train ([a-z_]+)(?!\S))(.*)")
BENCHMARK = re.compile(r"python examples/benchmarks/run\.py(.*)")


def commands() -> list[tuple[str, str, str]]:
    """Where, which script (or ``run``) and which flags, of commands without shell variables."""
    found = []
    for source in SOURCES:
        text = re.sub(r"\\\\?\n\s*", " ", source.read_text())
        for line in text.splitlines():
            script, benchmark = SCRIPT.search(line), BENCHMARK.search(line)
            name = script[1] or script[2] if script else "run"
            flags = script[3] if script else benchmark[1] if benchmark else ""
            flags = re.split(r"[`|>&\"]", flags)[0].strip()
            # Beginnings of commands in shell variables have no method.
            whole = script is not None or "--method" in flags
            # These end before anything is read, or read what only a reader has.
            if script is not None and re.search(r"--(help|config)\b", flags):
                continue
            if flags and whole and "$" not in flags:
                found.append((source.name, name, flags))
    return sorted(set(found))


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run", ROOT / "examples/benchmarks/run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_commands_of_every_script() -> None:
    names = {name for _, name, _ in commands()}
    assert names >= {"diffppo", "diffsac", "diffwpo", "dime", "run"}
    assert len(commands()) > 25


@pytest.mark.parametrize(("source", "name", "flags"), commands())
def test_a_documented_command_is_accepted(
    source: str, name: str, flags: str, run: ModuleType
) -> None:
    argv = shlex.split(flags, comments=True)
    if name == "run":
        args, argv = run.parser().parse_known_args(argv)
        name, argv = args.method, ["--env", args.env, *argv]
    given = Parser(METHODS[name].config).parse_options(argv)
    # It names a file that only a reader has.
    given.pop("resume", None)
    config, _ = parse_config(METHODS[name].config, given)
    assert {k: getattr(config, k) for k in given} == given
