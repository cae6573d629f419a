"""The wheel, the import rules, the size limits and the README of the repository."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import PACKAGES, ROOT, copy_project

import diffpolicy

MAX_FILE_BYTES = 1_000_000
MAX_MODULE_LINES = 320
MAX_EXAMPLE_LINES = 120

BLOCK_LIGHTNING = """
import sys

BLOCKED = {"lightning", "lightning_fabric", "pytorch_lightning"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Blocker())
try:
    import lightning
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("lightning is not blocked")

import diffpolicy, objectives, collectors

loaded = {name.partition(".")[0] for name in sys.modules} & BLOCKED
assert not loaded, loaded
assert "diffpolicy.trainers" not in sys.modules
"""


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result with the output of both streams in ``stdout``."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def repository_files() -> Iterator[Path]:
    """Yield the files of the repository without caches, environments and results of runs."""
    skipped = {"__pycache__", "build", "dist", "lightning_logs", "runs"}
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in skipped
            and not name.endswith(("_cache", ".egg-info"))
            and name not in {".git", ".hypothesis", ".benchmarks"}
            and not (Path(folder) / name / "pyvenv.cfg").exists()
        ]
        yield from (Path(folder) / name for name in names)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the wheel and return the names of the files inside."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    # Folders that setuptools would pick up if the packages were not listed explicitly.
    for extra in ("benchmarks", "examples", "tests"):
        (project / extra).mkdir()
        (project / extra / "__init__.py").touch()
    result = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=project)
    assert result.returncode == 0, result.stdout
    (wheel,) = (project / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_contains_exactly_three_packages(wheel_names: list[str]) -> None:
    top_level = {name.partition("/")[0] for name in wheel_names}
    (dist_info,) = (name for name in top_level if name.endswith(".dist-info"))
    assert top_level == {*PACKAGES, dist_info}
    assert dist_info == f"diffpolicy-{diffpolicy.__version__}.dist-info"


def test_wheel_contains_all_modules_policies_and_type_markers(
    wheel_names: list[str],
) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in [*(ROOT / package).rglob("*.py"), ROOT / package / "py.typed"]
    }
    shipped = [path for path in (ROOT / "diffpolicy/pretrained").rglob("*") if path.is_file()]
    expected |= {path.relative_to(ROOT).as_posix() for path in shipped}
    assert any(path.name == "model.safetensors" for path in shipped)
    assert {name for name in wheel_names if name.startswith(PACKAGES)} >= expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)


def test_packages_import_without_lightning() -> None:
    result = run(sys.executable, "-c", BLOCK_LIGHTNING, cwd=ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("objectives", "import lightning", "Only diffpolicy.trainers imports lightning"),
        ("objectives", "import collectors", "Imports point downwards only"),
        ("collectors", "import objectives", "Imports point downwards only"),
        ("diffpolicy/actors", "import diffpolicy.trainers", "Imports point downwards only"),
        ("diffpolicy/networks", "import torchrl", "diffpolicy.networks needs torch only"),
        ("diffpolicy/sde", "import tensordict", "diffpolicy.sde needs torch only"),
        ("diffpolicy", "import diffpolicy.trainers", "Importing diffpolicy imports neither"),
        ("diffpolicy/unlisted", "import torch", "Every part of diffpolicy has a layer"),
    ],
)
def test_import_linter_reports_violations(
    tmp_path: Path, module: str, line: str, contract: str
) -> None:
    project = copy_project(tmp_path)
    package = project / module
    package.mkdir(exist_ok=True)
    with (package / "__init__.py").open("a") as source:
        source.write(f"\n{line}\n")
    linter = Path(sys.executable).with_name("lint-imports")
    result = run(str(linter), "--no-cache", "--no-logo", cwd=project, COLUMNS="200")
    assert result.returncode == 1, result.stdout
    broken = [text for text in result.stdout.splitlines() if text.endswith("BROKEN")]
    assert any(text.startswith(contract) for text in broken), result.stdout


def test_no_large_files() -> None:
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in repository_files()}
    assert Path("pyproject.toml") in sizes
    assert not {path: size for path, size in sizes.items() if size > MAX_FILE_BYTES}


def test_committed_results_name_no_folder_of_a_machine() -> None:
    results = sorted((ROOT / "examples" / "benchmarks" / "results").rglob("*-seed*.json"))
    assert results
    for path in results:
        config = json.loads(path.read_text())["config"]
        # Other libraries have no folders.
        folders = [config[name] for name in ("output", "resume") if config.get(name) is not None]
        assert all(folder.startswith("runs/benchmarks/") for folder in folders), path


def test_modules_are_short() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert modules
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in modules}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_MODULE_LINES}


def test_training_script_is_short() -> None:
    script = ROOT / "examples" / "diffppo_lightning.py"
    assert len(script.read_text().splitlines()) <= MAX_EXAMPLE_LINES
