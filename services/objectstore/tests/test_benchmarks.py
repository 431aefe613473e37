"""The benchmarks run: each with little to do, in a process of its own. What they find is not looked at."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("command", "row"),
    [
        (["arena.py", "--size", "4", "--seconds", "0.02"], r"put 4 MiB, two writers at once +\d+\.\d+"),
        (["copies.py", "--mb", "4"], r"\d+\.\d+"),
        (["transfer.py", "--size", "4"], r"one object of 4 MiB \d+\.\d+ GB/s, 4 objects of 1 MiB together \d+\.\d+"),
    ],
    ids=lambda value: value[0].removesuffix(".py") if isinstance(value, list) else "",
)
def test_a_benchmark_runs(command: list[str], row: str) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / command[0]), *command[1:]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(row, done.stdout), done.stdout
