"""A copy of the project, for builds that leave files behind."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("diffpolicy", "objectives", "collectors")


def copy_project(destination: Path) -> Path:
    """Copy what a build needs, so that it leaves nothing behind in the repository."""
    ignore = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, destination / package, ignore=ignore)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, destination)
    return destination
