"""The results of a run as a file."""

from dataclasses import asdict
from pathlib import Path

from diffpolicy.trainers.io import files
from diffpolicy.trainers.loops.base import RLModule


def write_results(output: Path, module: RLModule) -> None:
    """Write ``results.json`` of a run.

    Raises:
        OSError: if the disk does not take it.
    """
    seconds = module.progress.wall_seconds
    content = {
        "method": module.config.method,
        "env": module.config.env_name,
        "seed": module.config.seed,
        "env_steps": module.progress.frames,
        "gradient_steps": module.progress.gradient_steps,
        "wall_seconds": round(seconds, 3),
        "frames_per_second": round(module.progress.frames / seconds, 1) if seconds else 0.0,
        "config": module.config.plain(),
        "versions": files.versions(),
        "evaluations": [asdict(evaluation) for evaluation in module.progress.evaluations],
    }
    files.write_json(output / files.RESULTS_FILE, content)
