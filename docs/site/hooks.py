"""What mkdocs does beyond its own: tables of options, links to code, formulas, pages of methods."""

import re
import unicodedata
from html import unescape
from pathlib import Path
from typing import Any

import latex2mathml.converter
import site_links  # type: ignore[import-not-found]
import site_nav  # type: ignore[import-not-found]
import site_tables  # type: ignore[import-not-found]
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_LETTERS = re.compile(r'<mi mathvariant="(script|double-struck)">([A-Z])</mi>')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every page into the navigation, those of methods first of all."""
    missing = site_tables.missing_pages()
    if missing:
        raise PluginError(f"METHODS has {', '.join(missing)}: write docs/{missing[0]}.md.")
    config.nav = site_nav.complete(list(config.nav or []))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to."""
    pages = [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
    for uri, path in site_links.outside(pages).items():
        if path.name + ".md" == Path(uri).name:
            files.append(File.generated(config, uri, content=site_links.source_page(path)))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill in tables, and let links lead to pages of the site."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    try:
        return site_links.rewritten(site_tables.fill(markdown), Path(source))
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script."""

    def formula(found: re.Match[str]) -> str:
        _, bracket, latex = found.groups()
        display = "block" if bracket == "[" else "inline"
        source = unescape(latex).strip().replace("{aligned}", "{align*}")
        return _LETTERS.sub(_letter, latex2mathml.converter.convert(source, display=display))

    return _FORMULA.sub(formula, html)


def _letter(found: re.Match[str]) -> str:
    """A script or double-struck letter as its own character, as browsers want them."""
    name = {"script": "SCRIPT", "double-struck": "DOUBLE-STRUCK"}[found[1]] + f" CAPITAL {found[2]}"
    # Some of them, such as H in script, are older than the block of the others.
    try:
        return f"<mi>{unicodedata.lookup(name)}</mi>"
    except KeyError:
        return f"<mi>{unicodedata.lookup(f'MATHEMATICAL {name}')}</mi>"
