"""The README's example runs as it stands."""

import os
import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_runs(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program = tmp_path / "example.py"
    program.write_text(code)
    environment = {**os.environ, "SHOAL_STORAGE_PATH": str(tmp_path / "results")}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert "checkpoint_000004" in done.stdout
