"""The picture of the front page: policies that keep two modes beside one that keeps one.

    python examples/benchmarks/two_modes.py \
        runs/benchmarks/TurningDoubleWell-v0/{diffsac,sac}-seed0/checkpoints/last.ckpt
    python examples/benchmarks/two_modes.py

Samples actions of trained policies in every heading of TurningDoubleWell-v0, keeps their counts in
results/TurningDoubleWell-v0/two_modes.json, and draws them beside the optimal density. Without
checkpoints it draws the counts that are kept.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from multimodal import (  # type: ignore[import-not-found]
    Measured,
    make_task,
    measure,
    optimal,
)
from multimodal_plots import BINS  # type: ignore[import-not-found]
from report import NAMES  # type: ignore[import-not-found]
from run import RESULTS  # type: ignore[import-not-found]

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TASK = "TurningDoubleWell-v0"
COUNTS = RESULTS / TASK / "two_modes.json"
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "two-modes.png"
SAMPLES = 4000


def count(checkpoint: str) -> dict[str, Any]:
    """What a policy does: its name, temperature, optimal shares ``[bins]``, counts ``[K, bins]``.

    Raises:
        ValueError: for a policy of another task, or for a file that is not a checkpoint.
    """
    run: Measured = measure(checkpoint, SAMPLES, episodes=1)
    if run.config.env != TASK:
        raise ValueError(f"{checkpoint} is of {run.config.env}; give policies of {TASK}.")
    grid, density = optimal(make_task(TASK), run)
    shares = np.histogram(grid, BINS, weights=density * np.gradient(grid))[0]
    return {
        "run": run.name,
        "temperature": run.temperature,
        "optimal": np.round(shares / shares.sum(), 5).tolist(),
        "counts": [np.histogram(row, BINS)[0].tolist() for row in run.samples[..., 0]],
    }


def draw(policies: Sequence[dict[str, Any]], path: Path) -> None:
    """Save one panel for the optimum and one for each policy: densities over the headings."""
    names = [policy["run"].rpartition("-seed")[0] for policy in policies]
    rows = np.array([policy["counts"] for policy in policies], dtype=float)
    headings, width = rows.shape[1], BINS[1] - BINS[0]
    best = np.repeat(np.array(policies[0]["optimal"])[None], headings, 0)
    densities = [best / width, *(rows / rows.sum(-1, keepdims=True) / width)]
    titles = ["best possible", *(NAMES.get(name, name) for name in names)]
    figure, panels = plt.subplots(
        1, len(titles), figsize=(3.1 * len(titles), 2.9), sharey=True, layout="constrained"
    )
    for axes, title, density in zip(panels, titles, densities, strict=True):
        extent = (0, 360, BINS[0], BINS[-1])
        image = axes.imshow(
            density.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmax=2, vmin=0
        )
        axes.set(title=title, xlabel="heading, degrees", xticks=range(0, 361, 90))
    panels[0].set_ylabel("action")
    figure.colorbar(image, ax=panels, label="density of sampled actions", extend="max")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Count if there are checkpoints, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="*", help=f"of runs on {TASK}")
    parser.add_argument("--counts", type=Path, default=COUNTS, help="where counts are kept")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the picture goes")
    args = parser.parse_args(argv)
    try:
        if args.checkpoints:
            text = json.dumps([count(checkpoint) for checkpoint in args.checkpoints])
            args.counts.write_text(text + "\n", encoding="utf-8")
        draw(json.loads(args.counts.read_text(encoding="utf-8")), args.picture)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
