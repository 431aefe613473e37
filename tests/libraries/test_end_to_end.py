"""All libraries in one program: data, tune, train and serve."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(240)
def test_digits_go_from_a_file_to_an_answer_over_http(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples/end_to_end.py"), "--samples", "3", "--epochs", "20", "--port", str(port), "--dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    reached = re.search(r"([\d.]+)% of 360 rows", done.stdout)
    assert reached is not None, done.stdout
    assert float(reached[1]) > 94, done.stdout
    answers = re.findall(r"a (\d): \{'digit': (\d)", done.stdout)
    assert len(answers) == 8
    assert sum(shown == read for shown, read in answers) >= 6
