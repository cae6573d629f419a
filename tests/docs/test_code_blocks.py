"""Python in the pages compiles, and runs where ``<!-- run -->`` stands before it.

``<!-- run 10_000=240 -->`` runs it with 240 in the place of 10_000, so that a page can show a run
of a size that learns something.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from documented import PAGES, name_of

_BLOCK = re.compile(
    r"(?P<mark><!-- run(?P<changes>(?: \S+=\S+)*) -->\n)?^```python\n(?P<source>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A block of Python.

    Attributes:
        line: where it starts.
        source: its text.
        small: the text that runs, with smaller numbers; None if it is not marked as runnable.
    """

    line: int
    source: str
    small: str | None


def smaller(source: str, changes: str) -> str:
    """A text after ``old=new old=new``, each of which must be in it."""
    for change in changes.split():
        old, _, new = change.partition("=")
        assert old in source, f"{old} of <!-- run {change} --> is not in the block"
        source = source.replace(old, new)
    return source


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            line=text.count("\n", 0, found.start("source")),
            source=found["source"],
            small=smaller(found["source"], found["changes"]) if found["mark"] else None,
        )
        for found in _BLOCK.finditer(text)
    ]


WITH_CODE = [page for page in PAGES if blocks(page)]
RUNNABLE = [page for page in WITH_CODE if any(block.small for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_compiles(page: Path) -> None:
    for block in blocks(page):
        compile("\n" * block.line + block.source, str(page), "exec")


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": name_of(page)}
    for block in blocks(page):
        if block.small is not None:
            exec(compile("\n" * block.line + block.small, str(page), "exec"), names)


def test_there_is_code_that_runs() -> None:
    assert len(RUNNABLE) >= 5
