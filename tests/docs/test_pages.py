"""Links lead somewhere, every page is in the navigation, and every method has its page."""

import copy
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from documented import DOCS, PAGES, ROOT, name_of
from site_links import headings, outside, place, targets
from site_nav import complete, pages_of
from site_tables import MACROS, fill, metrics, missing_pages, option_tables

from diffpolicy.trainers import METHODS
from diffpolicy.trainers.config.options import fields_of, flag_name

SETTINGS = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text())


def anchors(page: Path) -> set[str]:
    """Headings of a page, and the objects that a page of the reference shows."""
    text = page.read_text()
    found = headings(text)
    for package in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        public = importlib.import_module(package).__all__
        found |= {package, *(f"{package}.{name}" for name in public)}
    return found


def broken(page: Path) -> Iterator[str]:
    for target, anchor in targets(page.read_text()):
        goal = (page.parent / target).resolve() if target else page
        if not goal.is_file():
            yield f"{target} is not a file"
        elif anchor and anchor.lstrip("#") not in anchors(goal):
            yield f"{target}{anchor} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert not list(broken(page))


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](none.md) [b](#one) [c](#two) `[d](none.md)`\n\n    [e](none.md)\n")
    assert list(broken(page)) == ["none.md is not a file", "#two has no such heading"]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [place(page) for page in sorted(DOCS.rglob("*.md"))]
    named = list(pages_of(complete(copy.deepcopy(SETTINGS["nav"]))))
    assert len(named) == len(set(named))
    assert not set(pages) - set(named)
    unknown = set(named) - set(pages) - set(outside([DOCS / page for page in pages]))
    assert not unknown, "nav in docs/site/mkdocs.yml names pages that do not exist"


def test_every_method_has_its_page() -> None:
    missing = missing_pages()
    assert not missing, f"METHODS has {missing[0]!r}: write docs/{missing[0]}.md."


@pytest.mark.parametrize("method", METHODS)
def test_the_page_of_a_method_is_complete(method: str) -> None:
    text = (DOCS / f"{method}.md").read_text()
    tables = [f"<!-- {word}: {method} -->" for word in ("options", "metrics", "results")]
    wanted = ["## Equations", "$$", f"diffpolicy train {method} ", *tables]
    left = [part for part in wanted if part not in text]
    assert not left, f"docs/{method}.md lacks {left[0]}; docs/sac.md is an example."
    compared = (DOCS / "methods.md").read_text()
    row = f"]({method}.md) |"
    assert row in compared, f"docs/methods.md lacks the row of {method}, with a link {row}."


@pytest.mark.parametrize("method", METHODS)
def test_a_table_has_every_option(method: str) -> None:
    rows = option_tables(method).splitlines()
    for field in fields_of(METHODS[method].config):
        flag = f"| `{flag_name(field.name)}`"
        assert sum(row.startswith((f"{flag} |", f"{flag}, ")) for row in rows) == 1


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_filled_in(page: Path) -> None:
    text = page.read_text()
    asked = len(re.findall(rf"^<!-- (?:{'|'.join(MACROS)}): ", text, re.MULTILINE))
    assert fill(text).count("\n|---") >= text.count("\n|---") + asked


@pytest.mark.parametrize(
    ("macro", "advice"),
    [("<!-- option: dime -->", "options"), ("<!-- options: dim -->", "diffppo, diffsac")],
)
def test_a_table_that_does_not_exist_is_refused(macro: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        fill(macro)


def test_a_metric_has_one_meaning_in_a_method() -> None:
    rows = [(name, m) for metric in metrics() for name in metric.names for m in metric.methods]
    assert len(rows) > 100
    assert len(set(rows)) == len(rows)


def test_readme_is_the_first_page_of_the_site() -> None:
    assert place(ROOT / "README.md") == "index.md"
