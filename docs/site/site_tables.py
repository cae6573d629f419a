"""Tables for the pages of methods, from the registry of methods and from docs/metrics.md."""

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from diffpolicy.trainers import METHODS
from diffpolicy.trainers.config.options import Shape, flag_name, groups_of, shapes_of

DOCS = Path(__file__).resolve().parents[1]
RESULTS = DOCS.parent / "examples" / "benchmarks" / "results"
_WORDS = {int: "whole number", float: "number", str: "text", dict: "names and values"}
_ROW = re.compile(
    r"^\| (?P<names>`[^|]*) \| (?P<methods>[^|]*) \| (?P<meaning>.*) \|$", re.MULTILINE
)


class Metric(NamedTuple):
    """A row of docs/metrics.md.

    Attributes:
        names: columns of ``metrics.csv``.
        methods: what a method has to do to have them, by method: nothing, or use certain flags.
        meaning: what they are.
    """

    names: tuple[str, ...]
    methods: dict[str, str]
    meaning: str


def missing_pages() -> list[str]:
    """Registered methods without a page ``docs/<name>.md``."""
    return [name for name in METHODS if not (DOCS / f"{name}.md").exists()]


def option_tables(method: str) -> str:
    """Every option of a method as Markdown tables, one for each group.

    Raises:
        KeyError: for a method that is not registered.
    """
    config = METHODS[method].config
    shapes = shapes_of(config)
    parts = []
    for title, fields in groups_of(config):
        rows = [_option_row(field, shapes[field.name]) for field in fields]
        head = ["| option | values | default | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"**{title}**", "", *head, *rows]))
    return "\n\n".join(parts)


def _option_row(field: Field[Any], shape: Shape) -> str:
    flag = flag_name(field.name)
    if shape.kind is bool:
        flag = f"{flag}, {flag.replace('--', '--no-', 1)}"
    flags = ", ".join(f"`{word}`" for word in flag.split(", "))
    meaning = field.metadata["help"].replace("|", "\\|")
    return f"| {flags} | {_values(field, shape)} | {_default(field)} | {meaning} |"


def _values(field: Field[Any], shape: Shape) -> str:
    choices, valid = field.metadata["choices"], field.metadata["valid"]
    if shape.kind is bool:
        return "yes or no"
    if choices:
        words = ", ".join(f"`{word}`" for word in choices)
    else:
        words = _WORDS[shape.kind] + (f", {valid.words}" if valid else "")
    if shape.length is None:
        return words + "; one or several"
    return words if shape.length == 1 else f"{shape.length} of: {words}"


def _default(field: Field[Any]) -> str:
    value = field.default
    if value is None or value is MISSING:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{words}`" if words else ""


def metrics() -> Iterator[Metric]:
    """The rows of docs/metrics.md.

    Raises:
        ValueError: for a row that names a method which is not registered.
    """
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    for row in _ROW.finditer(text):
        names = tuple(re.findall(r"`([^`]+)`", row["names"]))
        yield Metric(names, _methods(row["methods"]), row["meaning"])


def _methods(cell: str) -> dict[str, str]:
    """Methods and conditions of a cell such as ``dime, diffsac (`--flag`)``."""
    if cell.strip() == "all":
        return dict.fromkeys(METHODS, "")
    found = re.findall(r"(\w+)(?: \(([^)]*)\))?(?:, |$)", cell.strip())
    unknown = [name for name, _ in found if name not in METHODS]
    if unknown or not found:
        known = ", ".join(METHODS)
        raise ValueError(f"docs/metrics.md names {unknown or cell!r}; methods are all, or {known}.")
    return dict(found)


def metric_table(method: str) -> str:
    """Every metric of a method as a Markdown table."""
    rows = ["| metric | meaning |", "|---|---|"]
    for metric in metrics():
        if method in metric.methods:
            names = ", ".join(f"`{name}`" for name in metric.names)
            condition = metric.methods[method]
            suffix = f" (with {condition})" if condition else ""
            rows.append(f"| {names} | {metric.meaning}{suffix} |")
    return "\n".join(rows)


class Runs(NamedTuple):
    """The committed runs of one label on one task, one entry for each seed.

    Attributes:
        task: the environment.
        label: ``dime``, or ``diffwpo-200k`` for one with other settings.
        results: contents of its ``results.json`` files.
    """

    task: str
    label: str
    results: list[dict[str, Any]]


def committed_runs() -> list[Runs]:
    """All runs in examples/benchmarks/results."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*/*-seed*.json")):
        key = (path.parent.name, path.name.rpartition("-seed")[0])
        runs.setdefault(key, []).append(json.loads(path.read_text(encoding="utf-8")))
    return [Runs(task, label, results) for (task, label), results in runs.items()]


def method_results(method: str) -> str:
    """What the committed runs of a method returned, and how long they took."""
    rows = [_result(runs, runs.task) for runs in committed_runs() if _method(runs) == method]
    return _result_table("task", rows)


def task_results(task: str) -> str:
    """What the committed runs on a task returned: by environment steps, then the best first."""

    def order(runs: Runs) -> tuple[int, float]:
        return runs.results[0]["env_steps"], -fmean(_last(result) for result in runs.results)

    ordered = sorted((runs for runs in committed_runs() if runs.task == task), key=order)
    return _result_table("method", [_result(runs, f"`{_method(runs)}`") for runs in ordered])


def _method(runs: Runs) -> str:
    return str(runs.results[0]["method"])


def _last(result: dict[str, Any]) -> float:
    return float(result["evaluations"][-1]["return_mean"])


def _result(runs: Runs, first: str) -> str:
    head, returns = runs.results[0], [_last(result) for result in runs.results]
    acting = {"deterministic": "deterministic", "stochastic": "sampled"}
    minutes = sorted(result["wall_seconds"] / 60 for result in runs.results)
    span = f"{minutes[0]:.1f} to {minutes[-1]:.1f}"
    name = "" if runs.label == _method(runs) else f" ({runs.label})"
    cells = [
        first + name,
        f"{head['env_steps']:,}".replace(",", " "),
        f"{head['gradient_steps']:,}".replace(",", " "),
        acting[head["config"]["eval_policy"]],
        f"**{fmean(returns):.0f}**",
        ", ".join(f"{value:.0f}" for value in returns),
        span,
    ]
    return f"| {' | '.join(cells)} |"


def _result_table(first: str, rows: list[str]) -> str:
    if not rows:
        return "There is no committed run yet."
    head = f"| {first} | env steps | updates | actions | mean return | each seed | minutes |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


#: What ``<!-- options: dime -->`` and its like on a page are replaced by.
MACROS = {
    "options": (option_tables, METHODS),
    "metrics": (metric_table, METHODS),
    "results": (method_results, METHODS),
    "task": (task_results, {runs.task for runs in committed_runs()}),
}
_MACRO = re.compile(r"^<!-- (\w+): ([\w-]+) -->$", re.MULTILINE)


def fill(markdown: str) -> str:
    """A page with its tables in the place of ``<!-- options: METHOD -->`` and the like.

    Raises:
        ValueError: for a word, a method or a task that does not exist.
    """

    def table(found: re.Match[str]) -> str:
        word, name = found.groups()
        if word not in MACROS:
            raise ValueError(f"{found[0]}: the word must be one of {', '.join(MACROS)}.")
        make, known = MACROS[word]
        if name not in known:
            raise ValueError(f"{found[0]}: the name must be one of {', '.join(sorted(known))}.")
        return make(name)

    return _MACRO.sub(table, markdown)
