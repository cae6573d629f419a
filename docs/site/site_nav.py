"""The navigation: what mkdocs.yml lists, the page of every method, and pages that nobody listed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffpolicy.trainers import METHODS

DOCS = Path(__file__).resolve().parents[1]
_METHODS, _GUIDE, _TUTORIALS = "Methods", "Guide", "Tutorials"


def pages_of(entry: Any) -> Iterator[str]:
    """The pages that a part of the navigation names."""
    if isinstance(entry, str):
        yield entry
        return
    for part in entry.values() if isinstance(entry, dict) else entry:
        yield from pages_of(part)


def complete(nav: list[Any]) -> list[Any]:
    """The navigation of mkdocs.yml with all that it does not name.

    Methods come in the order of ``METHODS``. Other pages that are not named come last in the guide,
    or in the tutorials if they are in their folder.
    """
    sections = {
        title: part for entry in nav if isinstance(entry, dict) for title, part in entry.items()
    }
    sections[_METHODS] += [f"{name}.md" for name in METHODS]
    named = set(pages_of(nav))
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS).as_posix()
        if name not in named:
            sections[_TUTORIALS if name.startswith("tutorials/") else _GUIDE].append(name)
    return nav
