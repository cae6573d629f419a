"""The blocks of docs/policies.md run, and the example acts with the file that they export."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Neither is there when the example runs.
BLOCKED = (
    "import sys\nfor name in ('torch', 'diffpolicy', 'collectors'):\n    sys.modules[name] = None\n"
)


@pytest.mark.slow
def test_the_page_and_the_torch_free_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "policies.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "policies.md", "exec"), names)
    assert names["total"] == 1000.0
    assert "1000.0" in capsys.readouterr().out
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"policy.onnx", "policy.pt2", "my-policy"}

    script = ROOT / "examples" / "act_with_onnx.py"
    code = f"{BLOCKED}import runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')\n"
    done = subprocess.run(
        [sys.executable, "-c", code, "policy.onnx", "--episodes", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    returns = [float(value) for value in re.findall(r"return (\d+\.\d)", done.stdout)]
    assert len(returns) == 2
    assert min(returns) > 900
