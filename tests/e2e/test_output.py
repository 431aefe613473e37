"""What tasks print comes to the driver under the name of who printed it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import sys, time
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
time.sleep(1.0)  # the driver prints until it ends; nothing tells it that no more will come
shoal.shutdown()
"""


def test_a_batch_of_prints_carries_the_name_of_each_function_and_actor():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=90, env={**os.environ, "SHOAL_DEDUP_LOGS": "0"})
    assert done.returncode == 0, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if " pid=" in line and "of-" in line]
    for who in ("first", "second", "counter"):
        mine = [line for line in lines if f"of-{who} " in line]
        assert len(mine) >= 20, f"{len(mine)} lines of {who} came: {done.stdout}\n{done.stderr}"
        expected = "Counter" if who == "counter" else who
        assert all(f"({expected} pid=" in line for line in mine), mine
    assert "\x1e" not in done.stdout + done.stderr
