"""What tasks print comes to the driver under the name of who printed it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import sys
import shoal

@shoal.remote
def first(i):
    print(f"of-first {i}")
    print(f"err-of-first {i}", file=sys.stderr)

@shoal.remote
def second(i):
    print(f"of-second {i}")
    print(f"tail of-second {i}", end="")

@shoal.remote
class Counter:
    def add(self, i):
        print(f"of-counter {i}")

shoal.init("local", num_cpus=1, include_dashboard=False)
counter = Counter.remote()
shoal.get([ref for i in range(20) for ref in (first.remote(i), second.remote(i), counter.add.remote(i))])
sys.stdin.readline()  # until all has come
shoal.shutdown()
"""


def test_a_batch_of_prints_carries_the_name_of_each_function_and_actor():
    wanted = {"of-first ": 40, "of-second ": 20, "of-counter ": 20}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "SHOAL_DEDUP_LOGS": "0"},
    )  # fmt: skip
    lines: list[str] = []
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        while any(sum(" pid=" in line and who in line for line in lines) < count for who, count in wanted.items()):
            line = program.stdout.readline()
            assert line, f"it ended with {program.wait()} before all had come: {''.join(lines)}"
            lines.append(line)
        program.stdin.close()
        lines += program.stdout.readlines()
    assert program.returncode == 0, "".join(lines)
    assert "\x1e" not in "".join(lines)
    for who, name in (("of-first ", "first"), ("of-second ", "second"), ("of-counter ", "Counter")):
        mine = [line for line in lines if " pid=" in line and who in line]
        assert all(f"({name} pid=" in line for line in mine), mine
