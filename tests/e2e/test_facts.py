"""Facts of Ray's model that are easily got wrong, and a storm of borrowed references after which nothing is left."""

from __future__ import annotations

import os
import random
import time

import pytest
import shoal
from shoal import _runtime
from shoal.exceptions import RayActorError, TaskCancelledError

pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("cluster")]


@shoal.remote(max_retries=5, retry_exceptions=True)
def count_and_wait(path):
    with open(path, "a") as file:
        file.write("x")
    time.sleep(60)


def test_cancelled_work_is_never_tried_again(tmp_path, wait_until):
    path = tmp_path / "runs"
    for force in (False, True):
        path.write_text("")
        ref = count_and_wait.remote(path)
        wait_until(path.read_text)
        shoal.cancel(ref, force=force)
        with pytest.raises((TaskCancelledError, shoal.exceptions.WorkerCrashedError)):
            shoal.get(ref, timeout=30)
        assert shoal.get(shoal.remote(lambda: 1).remote(), timeout=30) == 1
        assert path.read_text() == "x"


@shoal.remote
class Registered:
    def register(self, path):
        import atexit

        atexit.register(lambda: path.write_text("ran"))
        return os.getpid()


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("end", ["kill", "ray_terminate", "shoal_terminate", "scope"])
def test_kill_runs_no_exit_handlers_and_an_orderly_end_does(tmp_path, wait_until, end):
    path = tmp_path / "exit"
    actor = Registered.remote()
    pid = shoal.get(actor.register.remote(path))
    if end == "kill":
        shoal.kill(actor)
    elif end != "scope":
        with pytest.raises(RayActorError):
            shoal.get(getattr(actor, f"__{end}__").remote(), timeout=30)
    del actor
    wait_until(lambda: gone(pid))
    assert path.exists() is (end != "kill")


@shoal.remote
def borrow(refs, depth):
    """Passes what it got on: in new objects, as arguments, in closures."""
    if depth == 0:
        return shoal.get(shoal.remote(lambda: sum(len(shoal.get(ref)) for ref in refs)).remote())
    kept = shoal.put(refs)
    again = shoal.get(kept)
    return shoal.get([borrow.remote(again[i:], depth - 1) for i in range(min(2, len(again)))])


@shoal.remote
class Hoarder:
    def __init__(self):
        self.refs = []

    def hoard(self, refs):
        self.refs += refs
        return refs[:1]

    def drop(self):
        self.refs.clear()


def test_after_a_storm_of_borrowing_the_stores_bytes_fall_to_zero(wait_until):
    def sealed():
        from shoal_objectstore.v1 import objectstore_pb2

        reply = _runtime.state.engine.call("store/Stats", objectstore_pb2.Empty().SerializeToString(), 10.0)
        return objectstore_pb2.StatsReply.FromString(reply).sealed_bytes

    drawn = random.Random(7)
    wait_until(lambda: sealed() == 0, what="an empty store to begin with")
    hoarders = [Hoarder.remote() for _ in range(2)]
    for _ in range(5):
        refs = [shoal.put(bytes(200_000 + i)) for i in range(10)]
        drawn.shuffle(refs)
        results = [borrow.remote(refs[i : i + 3], 2) for i in range(0, 9, 3)]
        returned = shoal.get([hoarder.hoard.remote(refs[drawn.randrange(5) :]) for hoarder in hoarders])
        assert all(len(shoal.get(ref)) >= 200_000 for (ref,) in returned)
        shoal.get(results)
        results[0:1] = []
    wait_until(lambda: sealed() >= 10 * 200_000, what="the store to have counted them")
    shoal.get([hoarder.drop.remote() for hoarder in hoarders])
    del refs, results, returned, hoarders[:]
    wait_until(lambda: _runtime.state.engine.stats()["arena_bytes"] == 0, what="no object of this process in shared memory")
    wait_until(lambda: sealed() == 0, what="nothing in the store")
