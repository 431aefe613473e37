"""Queues have an end: what .remote() does at it, what a queued task costs, and that Ctrl-C is heard over a full queue."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import shoal
from shoal import _runtime
from shoal.exceptions import PendingCallsLimitExceeded

DEFAULTS = (2_000_000, 2_000_000_000)


@pytest.fixture
def limits(cluster):
    """Sets this process's limits; the defaults return after the test."""
    yield _runtime.state.engine.limit_submission
    _runtime.state.engine.limit_submission(*DEFAULTS)


@shoal.remote
def wait_for(path, number):
    Path(f"{path}.{number}").touch()
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.fixture
def gate(cluster, flag, wait_until):
    """A file. Until it exists, tasks hold all CPUs, and no queue moves."""
    path = flag("go")
    held = [wait_for.remote(str(path), number) for number in range(4)]
    wait_until(lambda: all(flag(f"go.{number}").exists() for number in range(4)), what="every CPU to be held")
    yield path
    path.touch()
    shoal.get(held, timeout=60)


@shoal.remote
def give(value):
    return value


@pytest.mark.parametrize(("tasks", "spec_bytes", "count", "argument"), [(50, 1 << 30, 60, b""), (10_000, 100_000, 30, b"x" * 5_000)])
def test_a_driver_waits_at_the_limit_and_is_told_why(gate, limits, wait_until, caplog, tasks, spec_bytes, count, argument):
    limits(tasks, spec_bytes)
    refs = []

    def submit():
        for _ in range(count):
            refs.append(give.remote(argument))

    with caplog.at_level(logging.WARNING, logger="shoal"):
        thread = threading.Thread(target=submit)
        thread.start()
        wait_until(lambda: "waits until some have" in caplog.text, what="the message")
    assert len(refs) < count
    assert thread.is_alive()
    gate.touch()
    thread.join(60)
    assert shoal.get(refs, timeout=60) == [argument] * count


def test_on_an_event_loop_and_inside_a_task_it_raises(gate, limits):
    limits(4, 1 << 30)

    async def submit():
        give.remote(1)

    with pytest.raises(PendingCallsLimitExceeded, match=r"4 tasks of this process have not ended \(at most 4\).*get\(\) results before .*give"):
        asyncio.run(submit())
    gate.touch()

    @shoal.remote
    def inner():
        _runtime.state.engine.limit_submission(0, 1 << 30)
        try:
            give.remote(1)
        except PendingCallsLimitExceeded as error:
            return str(error)
        finally:
            _runtime.state.engine.limit_submission(*DEFAULTS)

    limits(*DEFAULTS)
    assert "at most 0" in shoal.get(inner.remote(), timeout=60)


def private_bytes() -> int:
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Anonymous:"))


def test_a_queued_task_costs_less_than_a_kilobyte(gate):
    count = 100_000
    warm = [give.remote(n) for n in range(1000)]
    gc.collect()
    before = private_bytes()
    refs = [give.remote(n) for n in range(count)]
    gc.collect()
    each = (private_bytes() - before) / count
    gate.touch()
    assert shoal.get(refs[-1], timeout=100) == count - 1
    shoal.get(warm, timeout=100)
    assert each < 1000, f"{each:.0f} bytes"


def test_the_collector_does_not_know_references(cluster):
    """Else a million of them would be visited again and again while they are made."""
    assert not gc.is_tracked(shoal.put(1))


PROGRAM = """
import os, signal, threading, time
import shoal

shoal.init("local", num_cpus=1, log_to_driver=False, include_dashboard=False)

@shoal.remote
def give(n):
    time.sleep(0.0005)
    return n

refs = [give.remote(n) for n in range(30_000)]

def press():
    global pressed
    pressed = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(0.3, press).start()
try:
    shoal.get(refs)
    print("got")
except KeyboardInterrupt:
    print(time.monotonic() - pressed)
"""


WITHOUT_END = """
import os, signal, sys, threading, time
import shoal
from shoal import _runtime
from shoal.job_config import JobConfig

shoal.init("local", num_cpus=1, log_to_driver=False, include_dashboard=False, job_config=JobConfig(max_pending_tasks=1000))

def took_s(n):
    # Nothing ends while the long one runs, by which time the limit is reached: who asks then is refused, however slow the machine.
    return 1.0 if n == 100 else 0.003

@shoal.remote
def give(n):
    time.sleep(took_s(n))
    return n

@shoal.remote
class Actor:
    def give(self, n):
        time.sleep(took_s(n))
        return n

call = give.remote if sys.argv[1] == "task" else Actor.remote().give.remote
submitted = most = 0

def press():
    global pressed
    while submitted < 1500:
        time.sleep(0.01)
    pressed = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press).start()
ref = None
try:
    while True:
        ref = call(submitted)
        submitted += 1
        if submitted % 100 == 0:
            stats = _runtime.state.engine.stats()
            most = max(most, stats["tasks"])
except KeyboardInterrupt:
    heard_s = time.monotonic() - pressed
assert shoal.get(ref, timeout=60) == submitted - 1
print(heard_s, most)
"""


@pytest.mark.parametrize("kind", ["task", "actor"])
def test_a_driver_that_submits_without_end_is_held_at_the_limit_told_once_and_hears_ctrl_c(kind):
    done = subprocess.run([sys.executable, "-c", WITHOUT_END, kind], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    heard_s, most = map(float, done.stdout.split())
    assert heard_s < 2.0
    assert most <= 1000
    told = done.stderr.count("waits until some have")
    assert 1 <= told <= 10, "once every ten seconds"
    assert "JobConfig(max_pending_tasks=1000)" in done.stderr


def test_ctrl_c_in_get_is_heard_over_a_full_queue():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.0
