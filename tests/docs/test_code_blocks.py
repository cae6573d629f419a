"""Python in the pages compiles, and runs where ``<!-- run -->`` stands before it."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from documented import PAGES, name_of

_BLOCK = re.compile(
    r"(?P<mark><!-- run -->\n)?^```python\n(?P<source>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """A block of Python.

    Attributes:
        line: where it starts.
        source: its text.
        runs: whether it is marked as runnable.
    """

    line: int
    source: str
    runs: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(text.count("\n", 0, found.start("source")), found["source"], bool(found["mark"]))
        for found in _BLOCK.finditer(text)
    ]


WITH_CODE = [page for page in PAGES if blocks(page)]
RUNNABLE = [page for page in WITH_CODE if any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_compiles(page: Path) -> None:
    for block in blocks(page):
        compile("\n" * block.line + block.source, str(page), "exec")


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": name_of(page)}
    for block in blocks(page):
        if block.runs:
            exec(compile("\n" * block.line + block.source, str(page), "exec"), names)


def test_there_is_code_that_runs() -> None:
    assert len(RUNNABLE) >= 5
