"""The README's program and the examples run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(*command):
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readme_s_program(tmp_path):
    program = re.search(r"```python\n(.*?)```", (ROOT / "libs" / "data" / "README.md").read_text(), re.S)
    (tmp_path / "program.py").write_text(program.group(1).replace("shoal.init()", "shoal.init('local', num_cpus=2, include_dashboard=False)"))
    run(str(tmp_path / "program.py"))


def test_the_example_of_logs(tmp_path):
    output = run(str(ROOT / "examples" / "data_logs.py"), "--requests", "40000", "--out", str(tmp_path / "report"))
    assert "40,000 requests" in output and "500 users had failed ones" in output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["country=CH", "country=DE", "country=FR", "country=IT"]


def test_the_example_of_digits():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    output = run(str(ROOT / "examples" / "data_digits.py"), "--epochs", "3")
    assert "1797 images in 4 files" in output
    assert float(re.search(r"not seen: ([\d.]+)%", output).group(1)) > 80
