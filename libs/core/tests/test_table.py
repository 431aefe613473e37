"""The engine's table of tasks and objects, by itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from shoal import _core

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")]


def test_no_insertion_moves_more_than_a_small_part_of_the_table(tmp_path: Path) -> None:
    headers = Path(_core.__file__).parent
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-O2", f"-I{headers}", str(Path(__file__).with_name("table.cc")), "-o", tmp_path / "table"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not built.returncode, built.stderr
    done = subprocess.run([tmp_path / "table"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
