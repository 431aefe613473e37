"""Every Python example of the README runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def name(example: str) -> str:
    found = re.search(r"shoal(?:\.| import )(data|train|tune|serve|rl)\b", example)
    return found[1] if found else "core"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("example", EXAMPLES, ids=map(name, EXAMPLES))
def test_an_example_runs_as_it_stands(example: str, tmp_path: Path):
    (tmp_path / "example.py").write_text(example)
    env = {**os.environ, "HOME": str(tmp_path)}  # results go to ~
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_every_library_is_shown():
    assert [name(example) for example in EXAMPLES] == ["core", "data", "train", "tune", "serve", "rl"]
