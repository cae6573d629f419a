"""Pictures of what policies do on tasks with several modes; used by multimodal.py."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from numpy.typing import NDArray

from collectors.environments.tasks.modes import NO_MODE, reached_goal
from collectors.environments.tasks.multi_goal import BOUND, GOAL_RADIUS, GOALS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FloatArray = NDArray[np.floating[Any]]
BINS = np.linspace(-1, 1, 41)


def save_panels(panels: Sequence[Callable[[Axes], None]], path: Path) -> None:
    """Save a picture with panels in rows of four."""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3 * columns, 2.8 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel(axes)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_densities(
    axes: Axes,
    title: str,
    samples: FloatArray,
    optimal: Sequence[tuple[FloatArray, FloatArray]],
) -> None:
    """Densities of samples ``[R, S]``, their mean in bold, and optimal ones dashed.

    Args:
        axes: where to draw.
        title: its title.
        samples: actions of each row, for example of each seed and state.
        optimal: actions ``[G]`` and densities ``[G]``.
    """
    learned = np.array([np.histogram(row, BINS, density=True)[0] for row in samples])
    centres = (BINS[1:] + BINS[:-1]) / 2
    axes.plot(centres, learned.T, color="tab:blue", alpha=max(0.1, 3 / len(learned)), lw=0.6)
    axes.plot(centres, learned.mean(0), color="tab:blue", lw=1.6)
    for grid, density in optimal:
        axes.plot(grid, density, color="black", ls="--", lw=0.8)
    axes.set(title=title, xlabel="action", xlim=(-1, 1))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def draw_trajectories(axes: Axes, title: str, paths: FloatArray) -> None:
    """Paths ``[R, T, 2]`` between the goals, coloured by the goal that they reach, else black.

    The background is the distance to the nearest goal, light where the reward is high.
    """
    axis = np.linspace(-BOUND, BOUND, 101)
    points = np.stack(np.meshgrid(axis, axis), -1)
    distance = np.linalg.norm(points[..., None, :] - GOALS, axis=-1).min(-1)
    axes.contourf(axis, axis, -distance, 12, cmap="Greys_r", alpha=0.5)
    ends = reached_goal(paths[:, -1], GOALS, GOAL_RADIUS)
    for path, end in zip(paths, ends, strict=True):
        axes.plot(*path.T, color="black" if end == NO_MODE else f"C{end}", lw=0.5, alpha=0.5)
    for goal in GOALS:
        axes.add_patch(Circle(goal, GOAL_RADIUS, fill=False, lw=0.8))
    axes.set(title=title, aspect="equal", xlim=(-BOUND, BOUND), ylim=(-BOUND, BOUND))
