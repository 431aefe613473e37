"""The example that loses a worker node and its control store on the way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "survive.py"


@pytest.mark.timeout(240)
def test_a_job_ends_right_while_a_node_and_the_control_store_are_killed_under_it(home):
    done = subprocess.run([sys.executable, str(EXAMPLE), "--parts", "12"], capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"worker node \w+ is killed: \d+ parts lay there", done.stdout)
    assert "the control store, process" in done.stdout
    assert f"{12 << 19:,} numbers were counted right" in done.stdout
    home.expect_nothing(15.0)
