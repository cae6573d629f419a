"""Links between pages, and from pages to files of the repository, which become pages, too."""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
#: Where files of the repository outside of docs/ are on the site.
PLACE = "repository"
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".json": "json"}
_REMOTE = re.compile(r"\w+:")
_IMAGES = {".png", ".gif", ".svg"}
_FENCE = re.compile(r"^(?P<fence> *(?:```+|~~~+)).*?^(?P=fence)$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(f"{_FENCE.pattern}|`[^`\\n]+`|^ {{4}}[^\\n]*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\[\]]*\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")


def without_code(markdown: str) -> str:
    """The text with blanks in the place of all code."""
    return _CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), markdown)


def targets(markdown: str) -> Iterator[tuple[str, str]]:
    """Relative links outside of code: the file, which may be empty, and the anchor, with its #."""
    for found in _LINK.finditer(without_code(markdown)):
        if not _REMOTE.match(found["target"]):
            yield found["target"], found["anchor"] or ""


def place(file: Path) -> str:
    """Where a file of the repository is among the sources of the site."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    if file == ROOT / "README.md":
        return "index.md"
    name = f"{PLACE}/{file.relative_to(ROOT).as_posix()}"
    if file.name == "README.md":
        return f"{name[: -len('README.md')]}index.md"
    return name if file.suffix == ".md" or file.suffix in _IMAGES else f"{name}.md"


def outside(pages: list[Path]) -> dict[str, Path]:
    """Files outside of docs/ that pages link to, directly or by each other, by their place.

    Raises:
        ValueError: for a link to a folder.
    """
    found: dict[str, Path] = {}
    waiting = list(pages)
    while waiting:
        page = waiting.pop()
        for target, _ in targets(page.read_text(encoding="utf-8")):
            file = (page.parent / target).resolve()
            where = place(file) if file.is_relative_to(ROOT) and target else "index.md"
            if file.is_dir() and target:
                raise ValueError(f"{page} links to a folder, {target}; link to a file in it.")
            if where.startswith(PLACE) and where not in found and file.exists():
                found[where] = file
                waiting += [file] if file.suffix == ".md" else []
    return found


def source_page(file: Path) -> str:
    """A page that shows a file."""
    name, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    return f"# {name}\n\n````{_LANGUAGES.get(file.suffix, 'text')}\n{text}````\n"


def rewritten(markdown: str, file: Path) -> str:
    """The text of a page whose links lead to places on the site."""
    here = os.path.dirname(place(file)) or "."
    pieces, last = [], 0
    for found in _LINK.finditer(without_code(markdown)):
        target = found["target"]
        goal = (file.parent / target).resolve()
        if not target or _REMOTE.match(target) or not goal.is_relative_to(ROOT):
            continue
        pieces += [markdown[last : found.start("target")], os.path.relpath(place(goal), here)]
        last = found.end("target")
    return "".join([*pieces, markdown[last:]])


def headings(markdown: str) -> set[str]:
    """Anchors of the headings of a page."""
    lines = re.findall(r"^#+ (.*)$", _FENCE.sub("", markdown), re.MULTILINE)
    return {_slug(re.sub(r"[`*]|\]\([^)]*\)", "", line)) for line in lines}


def _slug(heading: str) -> str:
    words = re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKD", heading).lower())
    return re.sub(r"[-\s]+", "-", words.encode("ascii", "ignore").decode().strip())
