"""Docstrings as Markdown: Sphinx roles become links, and :: a colon."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstring of every object when it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package, once names can be resolved."""
        _rewrite(pkg)


def _rewrite(parent: griffe.Object) -> None:
    if parent.docstring is not None:
        parent.docstring.value = _markdown(parent.docstring.value, parent)
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            _rewrite(member)


def _markdown(text: str, scope: griffe.Object) -> str:
    text = _ROLE.sub(lambda found: _link(found[2], bool(found[1]), scope), text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _link(name: str, short: bool, scope: griffe.Object) -> str:
    """A link where the object is on the site; its name alone where it is not public."""
    label = name.rpartition(".")[2] if short else name
    first, *rest = name.split(".")
    try:
        path = ".".join([scope.resolve(first), *rest])
    except griffe.NameResolutionError:
        path = name
    return f'<autoref identifier="{path}" optional><code>{label}</code></autoref>'
