"""The pages of the documentation, and the modules in docs/site that make the site of them."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Everything that a reader sees: the pages of the site and those beside the code.
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
    ROOT / "examples" / "benchmarks" / "README.md",
]

sys.path.insert(0, str(DOCS / "site"))


def name_of(page: Path) -> str:
    """A page as tests call it."""
    return page.relative_to(ROOT).as_posix()


def documented_metrics(method: str) -> set[str]:
    """The columns that docs/metrics.md says a run of a method has with its defaults."""
    from site_tables import metrics

    rows = [metric for metric in metrics() if metric.methods.get(method) == ""]
    return {name for metric in rows for name in metric.names}
