"""The site builds without a warning, and a browser finds everything in it without a network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documented import DOCS, ROOT

from diffpolicy.trainers import METHODS

pytestmark = pytest.mark.slow

# What a browser fetches by itself, and where its address is.
FETCHED = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}


class Addresses(HTMLParser):
    """The addresses that a browser fetches for a page, and the links of the page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(FETCHED.get(tag, ""))
        if address:
            self.fetched.append(address)
        if tag == "a":
            self.links.append(dict(attrs).get("href") or "")
        if tag in ("pre", "code", "script", "style"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    settings = str(DOCS / "site" / "mkdocs.yml")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", settings, "-d"]
    built = subprocess.run([*command, str(folder)], capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 30
    return found


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        for address in Addresses(page).fetched:
            assert not re.match(r"(https?:)?//", address), f"{page.name}: {address}"
            if page.name != "404.html":
                assert (page.parent / address.split("?")[0]).exists(), f"{page.name}: {address}"


def test_no_markdown_is_left_over(site: Path) -> None:
    left = re.compile(
        r"\$\$|\\\(|\\begin|\]\(|^\||<!--|:(class|func|meth|mod|data|attr):", re.MULTILINE
    )
    for page in pages(site):
        found = left.search(" ".join(Addresses(page).text))
        assert not found, f"{page.name}: {found and found[0]}"


@pytest.mark.parametrize("method", METHODS)
def test_the_page_of_a_method_is_on_the_site(site: Path, method: str) -> None:
    page = site / f"{method}.html"
    text = page.read_text()
    assert text.count("<math") >= 1
    assert "<code>--total-frames</code>" in text
    assert "<code>gradient_steps</code>" in text
    assert f"{method}.html" in Addresses(site / "methods.html").links
