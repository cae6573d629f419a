"""docs/results.md: the page of the protocol, from the results that are there, and its pictures."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from aggregate import aggregate, interval, normalized  # type: ignore[import-not-found]
from numpy.typing import NDArray
from protocol import (  # type: ignore[import-not-found]
    NAMES,
    SEEDS,
    TUNING_SEEDS,
    TUNING_TASKS,
)
from protocol_results import (  # type: ignore[import-not-found]
    GroupResults,
    Runs,
    TaskResults,
)

from diffpolicy.cli.curves import TRIMMED_SEEDS, draw

DASH = "\N{EN DASH}"
# Returns below this size are written with more digits.
SMALL = 100

_HEAD = """\
# Results

<!-- Written by `python examples/benchmarks/report.py --protocol`; changes by hand are lost. -->

What the methods reach with their defaults, by a protocol that was fixed before these runs:

* **Tuned on** {tasks}, seeds {tuning}. Then the
  defaults were frozen: the same ones for all tasks. Tables mark the tasks that were tuned on; an
  aggregate over the others stands beside that over all.
* **Reported with** seeds {seeds}, with which nothing was tuned. Every seed
  counts, and no checkpoint is picked: returns are those of the last evaluation, 10 episodes in
  separate environments, with deterministic actions.
* **Failures count.** A run whose training fails has the return of untrained policies from there
  on, and tables name it.
* **DPPO** is DiffPPO with `--temperature 0 --initial-noise-scale 1 --final-noise-scale 1`, which
  were its defaults until these rows were known: DiffPPO's were chosen again then, on tuning tasks
  with tuning seeds only.
* **SB3** is Stable-Baselines3, which was not tuned: PPO with VecNormalize and the networks,
  rollouts and learning rate of Gaussian PPO here; SAC with its own defaults.

The curves are means over seeds with 95 % bands. IQM is the interquartile mean, and in brackets is
its 95 % interval by a bootstrap over seeds, stratified by tasks where there are several. Below
{least} runs it is a dash, because nothing would be left out at either end.

Normalised returns: on each task, 0 is the mean return of all untrained policies in the table, and 1
the best mean of a method in the table. They compare the methods of one table, and say nothing about
others. A task on which no mean is above the return of every untrained policy is not among them.
Rows with fewer tasks or runs than others compare with care.

Hours are wall time of one run on one CPU thread, evaluations included, on a machine with other
work.

    python examples/benchmarks/protocol.py           # makes what is missing
    python examples/benchmarks/protocol.py --list    # prints all commands, also those of SB3
    python examples/benchmarks/report.py --protocol  # writes this page and its pictures
"""


def page(
    groups: Sequence[GroupResults], pictures: Callable[[GroupResults, TaskResults], str]
) -> str:
    """The whole page as Markdown.

    Args:
        groups: all results.
        pictures: where the picture of a task in a group is, as the page says it.
    """
    head = _HEAD.format(
        tasks=_and(TUNING_TASKS),
        tuning=_and(TUNING_SEEDS),
        seeds=_and(SEEDS),
        least=TRIMMED_SEEDS,
    )
    return "\n".join([head.rstrip(), *(_section(group, pictures) for group in groups)]) + "\n"


def draw_pictures(groups: Sequence[GroupResults], folder: Path) -> None:
    """Draw the curves of every task that has some.

    Args:
        groups: all results.
        folder: of the pictures.
    """
    for group in groups:
        colors = {NAMES[label]: f"C{i}" for i, label in enumerate(group.group.methods)}
        for task in group.tasks:
            if task.runs:
                curves = {NAMES[label]: runs.curve for label, runs in task.runs.items()}
                title = f"{task.task.env}, {_thousands(task.task.frames)} steps"
                draw(curves, title, picture_file(group, task, folder), colors)


def picture_file(group: GroupResults, task: TaskResults, folder: Path) -> Path:
    """The picture of a task in a group."""
    return folder / f"{group.group.name}-{task.task.env.replace(':', '-')}.png"


def link_from(page_file: Path, folder: Path) -> Callable[[GroupResults, TaskResults], str]:
    """How a page calls the pictures in a folder."""

    def link(group: GroupResults, task: TaskResults) -> str:
        file = picture_file(group, task, folder.resolve())
        return Path(os.path.relpath(file, page_file.resolve().parent)).as_posix()

    return link


def _section(group: GroupResults, pictures: Callable[[GroupResults, TaskResults], str]) -> str:
    """The section of a group."""
    lengths = dict.fromkeys(_thousands(task.task.frames) for task in group.tasks)
    lines = [f"\n## {group.group.title}, {' / '.join(lengths)} steps\n"]
    if not group.present:
        names = _and([NAMES[label] for label in group.group.methods])
        tasks = _and([task.task.env for task in group.tasks])
        return "\n".join([*lines, f"There are no results yet of {names} on {tasks}."])
    lines.append(f"{group.present} of {group.planned} runs are here{_missing(group)}.\n")
    lines += [_aggregates(group), "", _overview(group)]
    for task in group.tasks:
        lines += _task(group, task, pictures)
    return "\n".join(lines)


def _missing(group: GroupResults) -> str:
    """What is missing altogether, as the end of a sentence."""
    lines = []
    for task in group.tasks:
        names = [NAMES[label] for label in group.group.methods if label not in task.runs]
        if names:
            lines.append(f"{_and(names) if task.runs else 'all methods'} on {task.task.env}")
    return f". There are none of {'; '.join(lines)}" if lines else ""


def _aggregates(group: GroupResults) -> str:
    """Interquartile means over all tasks, and over those that were not tuned on."""
    tuned_on = [task for task in group.tasks if task.task.env in TUNING_TASKS]
    others = [task for task in group.tasks if task not in tuned_on]
    sets = {"all tasks": group.tasks}
    if tuned_on and others:
        sets["tasks not tuned on"] = others
    heads = [f"IQM, {name} | tasks | runs" for name in sets]
    rows = []
    for label in group.group.methods:
        cells = [_aggregate_cell(label, tasks) for tasks in sets.values()]
        rows.append([NAMES[label], *cells])
    return _table(["normalised returns", *heads], rows)


def _aggregate_cell(label: str, tasks: Sequence[TaskResults]) -> str:
    scores = [
        normalized(task.runs[label].last, task.untrained, task.best)
        for task in tasks
        if task.learned and label in task.runs
    ]
    value = _iqm(scores, lambda number: f"{number:.2f}")
    return f"{value} | {len(scores)} of {len(tasks)} | {sum(map(len, scores))}"


def _overview(group: GroupResults) -> str:
    """Mean and interquartile mean of each method on each task."""
    names = [NAMES[label] for label in group.group.methods]
    rows = []
    for task in group.tasks:
        write = _writer(task)
        cells = [_return_cell(task.runs.get(label), write) for label in group.group.methods]
        ends = (task.untrained, task.best)
        scale = [write(end) for end in ends] if task.learned else [DASH, DASH]
        rows.append([_task_name(task), *cells, *scale])
    return _table(["mean; IQM", *names, "untrained: 0", "best mean: 1"], rows)


def _return_cell(runs: Runs | None, write: Callable[[float], str]) -> str:
    if runs is None:
        return DASH
    return f"**{write(float(runs.last.mean()))}**; {_iqm([runs.last], write)}"


def _task(
    group: GroupResults,
    task: TaskResults,
    pictures: Callable[[GroupResults, TaskResults], str],
) -> list[str]:
    """The picture of a task, and what its runs took."""
    lines = [f"\n### {task.task.env}, {_thousands(task.task.frames)} steps\n"]
    if not task.runs:
        return [*lines, "There are no results yet."]
    env = task.task.env
    lines.append(f"![evaluation returns on {env}]({pictures(group, task)})\n")
    heads = ["method", "seeds", "env steps", "updates", "hours", "each seed"]
    rows = [
        [NAMES[label], *_run_cells(task.runs.get(label), _writer(task))]
        for label in group.group.methods
    ]
    return [*lines, _table(heads, rows)]


def _run_cells(runs: Runs | None, write: Callable[[float], str]) -> list[str]:
    if runs is None:
        return [f"0 of {len(SEEDS)}", *[DASH] * 4]
    return [
        _seeds(runs),
        _thousands(int(runs.curve.steps[-1])),
        _thousands(round(runs.updates)),
        f"{runs.hours:.2f}",
        ", ".join(write(float(value)) for value in runs.last),
    ]


def _seeds(runs: Runs) -> str:
    """How many seeds there are, and which are not or failed."""
    missing = [seed for seed in SEEDS if seed not in runs.seeds]
    words = [f"{len(runs.seeds)} of {len(SEEDS)}"]
    if missing:
        words.append(f"missing: {_and(missing)}")
    if runs.failed:
        words.append(f"failed: {_and(runs.failed)}")
    return "; ".join(words)


def _iqm(scores: Sequence[NDArray[np.float64]], write: Callable[[float], str]) -> str:
    """The interquartile mean over the runs of some tasks, with its interval."""
    if sum(map(len, scores)) < TRIMMED_SEEDS:
        return DASH
    low, high = interval(scores)
    return f"{write(aggregate(scores))} ({write(low)} to {write(high)})"


def _writer(task: TaskResults) -> Callable[[float], str]:
    """How returns on a task are written."""
    sizes = [np.abs(runs.last).max() for runs in task.runs.values()]
    digits = 1 if sizes and max(sizes) < SMALL else 0
    return lambda value: f"{value:.{digits}f}"


def _task_name(task: TaskResults) -> str:
    return f"{task.task.env} (tuned on)" if task.task.env in TUNING_TASKS else str(task.task.env)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = " | ".join(heads)
    lines = [f"| {columns} |", "|---" * (columns.count(" | ") + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _and(words: Sequence[object]) -> str:
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last
