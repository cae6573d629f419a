"""Run the tests in every Python from 3.11 to 3.13, and with every torch, that this machine has.

    make test-versions
    make test-versions INSTALL=1 TORCH="2.13.0 2.14.1"   # first installs what is missing

Without INSTALL nothing is downloaded: what cannot be tried is named, and skipped. Each pair of
versions has a virtual environment of its own in build/versions, which is used again. The exit code
is 1 if tests fail somewhere, or if nothing could be tried.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
#: Every layer, without the tests that start scripts.
TESTS = ("tests/sde", "tests/networks", "tests/actors", "tests/collection", "tests/trainers")
_PROBE = """
from importlib.metadata import version
print([version(name) for name in ("torchrl", "lightning", "pytest", "torch")][-1].split("+")[0])
"""


def main() -> int:
    """Try all pairs; print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="install what is missing")
    parser.add_argument("--torch", nargs="*", default=[], help="versions of torch to install")
    parser.add_argument("tests", nargs="*", default=[], help="tests to run (default: most)")
    args = parser.parse_args()
    results: list[tuple[str, str]] = []
    for version in PYTHONS:
        pairs = list(interpreters(version, args.torch or [pinned("torch")], args.install))
        if not pairs:
            results.append((f"python {version}", "skipped: not on this machine"))
        for name, python, problem in pairs:
            outcome = problem or run_tests(python, args.tests or TESTS)
            results.append((name, outcome))
            print(f"{name}: {outcome}", flush=True)
    width = max(len(name) for name, _ in results)
    print("\n".join(f"{name:{width}}  {outcome}" for name, outcome in results))
    outcomes = [outcome for _, outcome in results]
    return int("passed" not in outcomes or "failed" in outcomes)


def interpreters(
    version: str, torches: list[str], install: bool
) -> Iterator[tuple[str, Path, str | None]]:
    """A name, an interpreter, and why it cannot be tried, of every pair with this Python."""
    found: dict[str, Path] = {}
    candidates = [Path(sys.executable), *which(f"python{version}")]
    candidates += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    candidates += sorted(ROOT.glob(f"build/versions/py{version}-*/bin/python"))
    own = [path for path in candidates if python_version(path) == version]
    for python in own:
        torch = output([str(python), "-c", _PROBE])
        if torch:
            found.setdefault(torch, python)
    for torch in torches:
        if own and torch not in found and install:
            python, problem = installed(own[0], version, torch)
            if problem:
                yield f"python {version}, torch {torch}", python, f"skipped: {problem}"
            else:
                found[torch] = python
    for torch, python in sorted(found.items()):
        yield f"python {version}, torch {torch}", python, None
    if own and not found and not install:
        yield f"python {version}", own[0], "skipped: no torch, torchrl, lightning; INSTALL=1"


def installed(base: Path, version: str, torch: str) -> tuple[Path, str | None]:
    """A virtual environment with this torch, and what went wrong if it could not be made."""
    folder = ROOT / f"build/versions/py{version}-torch{torch}"
    python = folder / "bin/python"
    constraints = folder.with_suffix(".txt")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not re.match(r"torch==", line)]
    constraints.write_text("\n".join([*kept, f"torch=={torch}"]), encoding="utf-8")
    commands = [
        [str(base), "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", "-c", str(constraints), "-e", f"{ROOT}[dev]"],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return python, f"cannot be installed ({said})"
    return python, None


def run_tests(python: Path, tests: tuple[str, ...] | list[str]) -> str:
    """``passed`` or ``failed``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", "pytest", "-q", "-x", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    return "failed" if done.returncode else "passed"


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{package}==(\S+)$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def which(name: str) -> list[Path]:
    """The interpreter of this name on the path, if there is one."""
    path = shutil.which(name)
    return [] if path is None else [Path(path)]


def python_version(python: Path) -> str:
    """Such as 3.11; empty if it does not run."""
    return output([str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])


def output(command: list[str]) -> str:
    """What a command prints; empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
