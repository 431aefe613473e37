"""What one call costs, without a clock: system calls on both sides, and context switches. A regression shows on the slowest machine."""

import asyncio
import functools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import shoal
from shoal import _runtime

CALLS = 300
# What goes on beside the calls goes by time, and a busy machine gives more time to each call: the thread that takes the token when nobody waits looks once a
# millisecond, and is woken or kicked no more often; a lease that was idle for 50 ms is given back and asked for again, which is a frame or two each.
A_MILLISECOND = {"sends": 0.1, "receives": 0.1}
OTHERWISE = 4
# Whatever else happens to be going on, on a busy machine: a third of the calls, so that one more of a kind for each call, or for each second one, shows.
ONCE = CALLS // 3


def engine():
    return _runtime.state.engine


@shoal.remote
def nothing():
    return None


@shoal.remote(num_cpus=0)
class Plain:
    def nothing(self):
        return None

    def system_calls(self):
        return engine().system_calls()


@shoal.remote(num_cpus=0)
class Asynchronous:
    async def nothing(self):
        return None

    async def system_calls(self):
        return engine().system_calls()


class Cost:
    """What happened between two looks, of which so much is allowed."""

    def __init__(self, calls: int, elapsed_s: float, before: dict[str, int], after: dict[str, int]) -> None:
        self.calls = calls
        self.elapsed_ms = elapsed_s * 1e3
        self.counts = {kind: after[kind] - before[kind] for kind in before}

    def hold(self, **most: int) -> None:
        """At most so many of each kind for each call. The kinds that are not named: none but what time brings."""
        kinds = [kind for kind in self.counts if kind != "polls"]
        allowed = {kind: most.get(kind, 0) * self.calls + A_MILLISECOND.get(kind, OTHERWISE) * self.elapsed_ms + ONCE for kind in kinds}
        over = {kind: (self.counts[kind], round(allowed[kind])) for kind in allowed if self.counts[kind] > allowed[kind]}
        assert not over, f"{self.calls} calls in {self.elapsed_ms:.0f} ms: (made, allowed) {over} of {self.counts}"


def cost_of(call, look=lambda: engine().system_calls(), calls=CALLS) -> Cost:
    for _ in range(20):
        call()
    before, began = look(), time.monotonic()
    for _ in range(calls):
        call()
    elapsed_s = time.monotonic() - began
    return Cost(calls, elapsed_s, before, look())


# A frame goes out, one comes back: one send, one receive. A waiter that has spun in vain sleeps once.
ONE_ROUND = {"sends": 1, "receives": 1, "sleeps": 1}


def test_a_task_is_one_send_and_one_receive(cluster):
    cost_of(lambda: shoal.get(nothing.remote())).hold(**ONE_ROUND)


@pytest.mark.parametrize("kind", [Plain, Asynchronous])
def test_an_actor_call_is_one_send_and_one_receive_on_either_side(cluster, kind):
    actor = kind.remote()
    cost_of(lambda: shoal.get(actor.nothing.remote())).hold(**ONE_ROUND)
    cost_of(lambda: shoal.get(actor.nothing.remote()), lambda: shoal.get(actor.system_calls.remote())).hold(**ONE_ROUND)


def test_an_awaited_actor_call_is_one_send_and_one_receive(cluster):
    actor = Asynchronous.remote()

    async def calls(count):
        for _ in range(count):
            await actor.nothing.remote()

    async def main():
        await calls(20)
        before, began = engine().system_calls(), time.monotonic()
        await calls(CALLS)
        return Cost(CALLS, time.monotonic() - began, before, engine().system_calls())

    # The background thread receives, and wakes the thread that tells the loop.
    asyncio.run(main()).hold(sends=1, receives=1, sleeps=1, parks=2, wakes=2, kicks=1, drains=1)


def test_put_and_get_of_small_values_make_no_system_call(cluster):
    ref = shoal.put(1)
    cost = cost_of(lambda: shoal.put(1), calls=10_000)
    cost.hold()
    assert cost.counts["polls"] == 0
    cost = cost_of(lambda: shoal.get(ref), calls=10_000)
    cost.hold()
    assert cost.counts["polls"] == 0


def test_put_and_get_in_shared_memory_ask_nobody(cluster):
    data = bytes(1 << 20)
    ref = shoal.put(data)
    cost_of(lambda: shoal.get(ref), calls=1000).hold()
    # The store lends extents of many objects at a time.
    cost = cost_of(lambda: shoal.put(data))
    cost.hold()


def switches() -> dict[str, int]:
    """Voluntary context switches of this process: of this thread, and of all others."""
    own, me = Counter({"caller": 0, "others": 0}), threading.get_native_id()
    for task in Path("/proc/self/task").iterdir():
        try:
            text = (task / "status").read_text()
        except OSError:
            continue  # it has ended
        own["caller" if int(task.name) == me else "others"] += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M)[1])
    return dict(own)


def test_a_caller_sleeps_at_most_once_a_call_and_wakes_no_other_thread(cluster):
    actor = Plain.remote()
    for call in (lambda: shoal.get(nothing.remote()), lambda: shoal.get(actor.nothing.remote())):
        cost_of(call, switches).hold(caller=1)
    ref = shoal.put(1)
    for call in (lambda: shoal.put(1), lambda: shoal.get(ref)):
        cost_of(call, switches, calls=10_000).hold()


TRACED = """
import os, shoal
shoal.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)

@shoal.remote
def nothing():
    return None

@shoal.remote(num_cpus=0)
class Plain:
    def nothing(self):
        return None

actor, ref = Plain.remote(), shoal.put(1)
kept = []
for name, call in {
    "task": lambda: shoal.get(nothing.remote()), "actor": lambda: shoal.get(actor.nothing.remote()),
    "put": lambda: kept.append(shoal.put(1)), "get": lambda: shoal.get(ref),
}.items():
    for _ in range(20):
        call()
    for _ in range(5):
        for mark in ("/begin/", "/end/"):
            try:
                os.readlink(mark + name)  # for whoever reads the trace
            except OSError:
                pass
            for _ in range(100 if mark == "/begin/" else 0):
                call()
shoal.shutdown()
"""


def can_trace() -> bool:
    return shutil.which("strace") is not None and subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_trace(), reason="needs strace, and leave to trace")
def test_a_trace_shows_no_system_call_of_the_caller_beside_these(tmp_path):
    # What the engine does not count, as Python's own, would show here.
    out = tmp_path / "trace"
    # Only the driver is traced: what it starts is let go at exec.
    command = ["strace", "-f", "-b", "execve", "-qq", "-o", str(out), sys.executable, "-c", TRACED]
    subprocess.run(command, check=True, timeout=100, capture_output=True)
    rounds: dict[str, list[Counter[str]]] = {}
    caller = seen = None
    for line in out.read_text().splitlines():
        pid, _, rest = line.partition(" ")
        mark = re.search(r'readlink\w*\(.*"/(begin|end)/(\w+)"', rest)
        if mark:
            caller, seen = pid, Counter() if mark[1] == "begin" else None
            if seen is not None:
                rounds.setdefault(mark[2], []).append(seen)
        elif seen is not None and pid == caller and (call := re.match(r"\s*(\w+)\(", rest)):
            seen[call[1]] += 1
    # A traced thread stops at each of its calls, with the mutex or the token in its hand when it is the one in the background, and the caller waits for it:
    # what each round shows is the calls' own.
    least = {name: functools.reduce(Counter.__and__, counts) for name, counts in rounds.items()}
    assert {name: len(counts) for name, counts in rounds.items()} == dict.fromkeys(("task", "actor", "put", "get"), 5)
    for name in ("put", "get"):
        # Memory for what is kept; and a thread that wakes once a second may ask for the GIL just then.
        assert set(least[name]) <= {"brk", "mmap", "munmap", "madvise", "futex"} and least[name].total() <= 10, rounds
    for name in ("task", "actor"):
        calls = least[name]
        assert 90 <= calls["sendto"] <= 110 and calls["recvfrom"] <= 110, rounds
        # Spinning is bounded by time, and traced calls are slow.
        assert calls["epoll_wait"] <= 100 * 30 and calls["futex"] < 100 and calls["write"] <= 50, rounds
        others = {kind: n for kind, n in calls.items() if kind not in ("sendto", "recvfrom", "epoll_wait", "futex", "write", "read")}
        assert sum(others.values()) <= 10, rounds
