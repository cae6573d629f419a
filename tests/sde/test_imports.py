"""The mathematics and the networks need torch only."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import diffpolicy.sde, diffpolicy.networks
heavy = {"tensordict", "torchrl", "gymnasium", "mujoco", "lightning"}
print(",".join(sorted(heavy & set(sys.modules))) or "none")
"""


def test_sde_and_networks_import_torch_only() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "none"
