"""The facts of Ray that programs rely on hold here, in a program that says `import ray`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("facts_of_ray.py")
BOUND_S = 240.0


@pytest.mark.timeout(BOUND_S + 30)
def test_every_fact_of_ray_holds_here_too(tmp_path: Path):
    # A folder of its own: a running cluster of this user must not be met. A short name: Unix sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="f-") as home:
        env = {**os.environ, "SHOAL_TMPDIR": home, "SHOAL_ADDRESS": "", "RAY_ADDRESS": ""}
        command = [sys.executable, "-m", "shoal.compat.ray", str(PROGRAM)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=BOUND_S)
    wanted = re.findall(r"^def (\w+)\(folder\):", PROGRAM.read_text(), re.MULTILINE)
    told = [line for line in done.stdout.splitlines() if line.startswith(("holds ", "FAILED "))]
    assert not [line for line in told if line.startswith("FAILED ")], done.stdout
    assert [line.split()[1] for line in told] == wanted, done.stdout + done.stderr[-4000:]


def test_every_test_that_the_table_names_exists():
    root = PROGRAM.parent.parent
    named = re.findall(r"`([./\w]+\.py)::(\w+)`", (root.parent / "docs/ray.md").read_text())
    assert len(named) > 50
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (root / path).read_text()]
    assert not missing
