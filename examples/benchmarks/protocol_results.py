"""The results of the protocol, as far as they are there: what each method has on each task."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from protocol import (  # type: ignore[import-not-found]
    ACTING,
    GROUPS,
    SEEDS,
    Group,
    Task,
    read,
)

from diffpolicy.cli.curves import Curve, curve_of, over_seeds

_LENGTH = re.compile(r"-(\d+)k-seed\d+$")

Array = NDArray[np.float64]
Results = Mapping[str, Any]


class Runs(NamedTuple):
    """The runs of one method on one task.

    Attributes:
        label: the method.
        curve: of all seeds that are there; a failed one has the return of untrained policies from
            its failure on.
        seeds: those that are there, failed ones included.
        failed: seeds whose training failed.
        updates: mean over the runs that did not fail, of all if all failed.
        hours: the same of wall time.
    """

    label: str
    curve: Curve
    seeds: tuple[int, ...]
    failed: tuple[int, ...]
    updates: float
    hours: float

    @property
    def last(self) -> Array:
        """Returns of the last evaluation ``[seeds]``."""
        last: Array = self.curve.returns[:, -1]
        return last


class TaskResults:
    """What all methods of a group have on one task.

    Args:
        task: with its budget.
        methods: labels, in the order of tables.
        folder: of the results of all tasks.

    Raises:
        ValueError: evaluations acted otherwise than the protocol says, or the seeds of a method
            ended at different steps.
    """

    def __init__(self, task: Task, methods: Sequence[str], folder: Path) -> None:
        self.task = task
        found: dict[str, dict[int, Results]] = {}
        for label in methods:
            paths = {seed: task.results(folder, label, seed) for seed in SEEDS}
            read_seeds = {seed: read(path, task) for seed, path in paths.items()}
            found[label] = {seed: content for seed, content in read_seeds.items() if content}
        firsts = [r["evaluations"][0]["return_mean"] for of in found.values() for r in of.values()]
        #: Mean return of untrained policies over all runs, which is 0 on the normalised scale.
        self.untrained = fmean(firsts) if firsts else float("nan")
        self._best_untrained = max(firsts, default=float("nan"))
        self.runs = {label: self._runs(label, of) for label, of in found.items() if of}

    @cached_property
    def best(self) -> float:
        """The best mean of any method at the last evaluation, 1 on the normalised scale."""
        return max((float(runs.last.mean()) for runs in self.runs.values()), default=float("nan"))

    @property
    def learned(self) -> bool:
        """Whether the mean of a method is above the return of every untrained policy.

        Otherwise the normalised scale would stretch what is noise.
        """
        return self.best > self._best_untrained

    def _runs(self, label: str, found: Mapping[int, Results]) -> Runs:
        ended = {seed: r for seed, r in found.items() if "failed" not in r}
        curves = {seed: self._curve(label, r) for seed, r in found.items()}
        whole = [curves[seed] for seed in ended]
        if whole:
            steps = over_seeds(whole, f"{label} on {self.task.env}").steps
        else:
            steps = np.array([0, self.task.frames])
        filled = [c if s in ended else self._filled(c, steps) for s, c in curves.items()]
        counted = list((ended or found).values())
        return Runs(
            label=label,
            curve=over_seeds(filled, f"{label} on {self.task.env}"),
            seeds=tuple(found),
            failed=tuple(seed for seed in found if seed not in ended),
            updates=fmean(results["gradient_steps"] for results in counted),
            hours=fmean(results["wall_seconds"] for results in counted) / 3600,
        )

    def _curve(self, label: str, results: Results) -> Curve:
        name = f"{label}, seed {results['seed']}, on {self.task.env}"
        curve = curve_of(results, Path(name))
        if curve.acting != ACTING:
            raise ValueError(f"{name}: evaluations must be {ACTING}, got {curve.acting} actions.")
        return curve

    def _filled(self, curve: Curve, steps: NDArray[np.int64]) -> Curve:
        """The curve of a failed run at given steps."""
        had = dict(zip(curve.steps.tolist(), curve.returns[0].tolist(), strict=True))
        returns = [had.get(step, self.untrained) for step in steps.tolist()]
        return curve._replace(steps=steps, returns=np.array([returns]))


class GroupResults(NamedTuple):
    """What the methods of a group have on all its tasks."""

    group: Group
    tasks: list[TaskResults]

    @property
    def present(self) -> int:
        """How many runs there are."""
        return sum(len(runs.seeds) for task in self.tasks for runs in task.runs.values())

    @property
    def planned(self) -> int:
        """How many the protocol has."""
        return len(self.tasks) * len(self.group.methods) * len(SEEDS)


def load(folder: Path) -> list[GroupResults]:
    """The groups of the protocol, each followed by those with other budgets that have results.

    Args:
        folder: one folder for each task.

    Raises:
        ValueError: as :class:`TaskResults` does.
    """
    groups = [variant for group in GROUPS for variant in (group, *_variants(group, folder))]
    return [
        GroupResults(group, [TaskResults(task, group.methods, folder) for task in group.tasks])
        for group in groups
    ]


def _variants(group: Group, folder: Path) -> list[Group]:
    """The group with every other budget that files in the folder are named for."""
    lengths = set()
    for task in group.tasks:
        for label in group.methods:
            files = task.results(folder, label, 0).parent.glob(f"{label}-*k-seed*.json")
            lengths |= {int(found[1]) for file in files if (found := _LENGTH.search(file.stem))}
    return [group.with_frames(1000 * length) for length in sorted(lengths)]
