"""What tasks print appears at the driver."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(90)

PROGRAM = """
import sys, time, shoal
shoal.init("local", num_cpus=2, object_store_memory=128 << 20{options})

@shoal.remote
def speak(text):
    print(text)
    print("wrong:", text, file=sys.stderr)

@shoal.remote
class Actor:
    def speak(self, text):
        print(text)

shoal.get(speak.remote("from a task"))
actor = Actor.remote()
shoal.get(actor.speak.remote("from an actor"))
deadline = time.monotonic() + 20
while time.monotonic() < deadline and not done():
    time.sleep(0.02)
shoal.shutdown()
"""

WATCHED = """
import io, sys
class Tee(io.TextIOBase):
    def __init__(self, to): self.to, self.text = to, ""
    def write(self, text): self.text += text; return self.to.write(text)
    def flush(self): self.to.flush()
sys.stdout, sys.stderr = Tee(sys.stdout), Tee(sys.stderr)
def done():
    return "from a task" in sys.stdout.text and "from an actor" in sys.stdout.text and "wrong:" in sys.stderr.text
"""


def run(home, code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_lines_are_prefixed_and_keep_their_stream(home):
    done = run(home, WATCHED + PROGRAM.format(options=""))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\(speak pid=\d+\) from a task$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^\(.*Actor.* pid=\d+\) from an actor$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^\(speak pid=\d+\) wrong: from a task$", done.stderr, re.MULTILINE), done.stderr


def test_they_stay_away_when_not_wanted(home):
    done = run(home, "done = lambda: True\n" + PROGRAM.format(options=", log_to_driver=False"))
    assert done.returncode == 0, done.stderr
    assert "from a" not in done.stdout + done.stderr
