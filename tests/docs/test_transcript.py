"""docs/tutorials/wheel-to-numpy.md as it is written: from a fresh environment to plain NumPy.

It needs the package index of pip, and some 2 GB in the temporary folder.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np
import pytest
from documented import DOCS
from project import copy_project

pytestmark = pytest.mark.slow

_PAGE = DOCS / "tutorials" / "wheel-to-numpy.md"
_FILE = re.compile(r"<!-- saved as (\S+) -->\n```python\n(.*?)```\n", re.DOTALL)
_COMMAND = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
# A policy that has learned nothing is at about -1200.
_SOLVED = -200


class Transcript(NamedTuple):
    """What the commands of the page said and left.

    Attributes:
        folder: where they ran.
        said: the output of all of them.
    """

    folder: Path
    said: str

    def number(self, pattern: str) -> float:
        """The number in the first group of a pattern, whose line is in the output."""
        found = re.search(pattern, self.said, re.MULTILINE)
        assert found, self.said[-3000:]
        return float(found[1])


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcript]:
    folder = copy_project(tmp_path_factory.mktemp("checkout"))
    text = _PAGE.read_text()
    for name, source in _FILE.findall(text):
        (folder / name).write_text(source)
    script = "\n".join(_COMMAND.findall(_FILE.sub("", text)))
    # The python of this environment, and packages of the environments of the page alone.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    yield Transcript(folder, done.stdout)
    for environment_folder in ("trained", "robot"):
        shutil.rmtree(folder / environment_folder)


def test_the_policy_is_trained_by_the_wheel(transcript: Transcript) -> None:
    packages = transcript.folder / "trained" / "lib"
    assert list(packages.glob("python*/site-packages/diffpolicy/cli/train.py"))
    assert transcript.number(r"^dime on Pendulum-v1 after 10000 .* return (-[\d.]+)") >= _SOLVED


def test_the_film_shows_a_pendulum_that_moves(transcript: Transcript) -> None:
    path = transcript.folder / "runs" / "pendulum" / "episodes.mp4"
    raw = ["-vf", "scale=100:100", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), *raw]
    film = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(film, np.uint8).reshape(-1, 100, 100, 3)
    assert len(frames) == 3 * 201
    assert frames[0].std() > 10
    moved = np.abs(frames[0].astype(float) - frames[40]).max()
    assert moved > 100


def test_the_exported_policy_acts_without_torch(transcript: Transcript) -> None:
    packages = {
        path.name.partition("-")[0]
        for path in transcript.folder.glob("robot/lib/python*/site-packages/*")
    }
    assert "onnxruntime" in packages
    assert not packages & {"torch", "tensordict", "torchrl", "diffpolicy"}
    assert transcript.number(r"^return (-[\d.]+) over 10 episodes$") >= _SOLVED
