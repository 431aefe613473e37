"""Limits of a job: each is an error that names it, and nothing else is harmed."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest
import shoal
from shoal import _runtime
from shoal.exceptions import JobLimitExceeded, JobStoreLimitExceeded, ObjectStoreFullError, PendingCallsLimitExceeded
from shoal.job_config import JobConfig

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", autouse=True)
def limited():
    with shoal.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False, job_config=JobConfig(None, "tight", 50, 2, 3, 20_000_000)):
        yield


@shoal.remote
def nest(levels):
    return 1 + shoal.get(nest.remote(levels - 1)) if levels > 1 else 1


@shoal.remote
class Idle:
    def answer(self):
        return 42

    def nest(self, levels):
        return shoal.get(nest.remote(levels))


def test_tasks_and_actors_may_nest_as_deep_as_allowed_and_no_deeper():
    assert shoal.get(nest.remote(3)) == 3
    with pytest.raises(JobLimitExceeded, match=re.escape("nest would be nested 4 deep, and the job's JobConfig(max_nesting_depth=3) allows 3")):
        shoal.get(nest.remote(4))
    idle = Idle.remote()
    assert shoal.get(idle.nest.remote(2)) == 2
    with pytest.raises(JobLimitExceeded, match="max_nesting_depth=3"):
        shoal.get(idle.nest.remote(3))


def test_an_actor_too_many_says_so_and_there_is_room_again_when_one_ends(wait_until):
    def lives():
        idle = Idle.remote()
        try:
            return idle if shoal.get(idle.answer.remote(), timeout=30) == 42 else None
        except JobLimitExceeded:
            return None

    # One of another test may still be on its way out.
    two = [wait_until(lives) for _ in range(2)]
    third = Idle.remote()
    with pytest.raises(JobLimitExceeded, match=re.escape("JobConfig(max_actors=2)")):
        shoal.get(third.answer.remote(), timeout=30)
    with pytest.raises(JobLimitExceeded, match=r"Idle 'named' was not created.*max_actors=2"):
        Idle.options(name="named").remote()
    assert shoal.get([idle.answer.remote() for idle in two]) == [42, 42]
    shoal.kill(two.pop())
    wait_until(lives)


@shoal.remote
def wait_for(path):
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)


@shoal.remote
def flood(path):
    try:
        return len([wait_for.remote(path) for _ in range(1000)])
    except PendingCallsLimitExceeded as error:
        return str(error)
    finally:
        open(path, "w").close()


def test_a_task_that_starts_too_many_is_told_the_limit_and_who_has_most_and_the_driver_waits(flag):
    text = shoal.get(flood.remote(str(flag("go"))))
    assert re.search(r"has 50 tasks that have not ended, 1 more are wanted, and its JobConfig\(max_pending_tasks=50\) allows no more", text), text
    assert re.search(r"; 49 of them are of .*flood \(pid \d+ on node [0-9a-f]{12}\): get\(\) results before .*wait_for is submitted", text), text
    assert shoal.get([nest.remote(1) for _ in range(300)]) == [1] * 300


def test_tasks_of_all_processes_count_together_and_the_driver_goes_on_when_others_end(flag, wait_until):
    @shoal.remote
    class Starter:
        def start(self, path, count):
            self.refs = [wait_for.remote(path) for _ in range(count)]

    starter = Starter.remote()
    shoal.get(starter.start.remote(str(flag("go")), 45))
    mine = []

    def submit():
        mine.extend(wait_for.remote(str(flag("go"))) for _ in range(20))

    thread = threading.Thread(target=submit)
    thread.start()
    wait_until(lambda: _runtime.state.engine.stats()["tasks"] == 5, what="the driver to be at the limit")
    assert thread.is_alive()
    flag("go").touch()
    thread.join(60)
    assert shoal.get(mine, timeout=60) == [None] * 20
    shoal.kill(starter)


MEGABYTE = bytes(1_000_000)


@shoal.remote
class Keeper:
    def put(self, count):
        self.refs = [shoal.put(MEGABYTE) for _ in range(count)]
        return os.getpid()

    def let_go(self):
        del self.refs


def room():
    """How many megabytes the driver can put now."""
    refs = []
    try:
        while True:
            refs.append(shoal.put(MEGABYTE))
    except JobStoreLimitExceeded:
        return len(refs)


def test_bytes_of_all_processes_count_together_and_come_back_by_their_end(wait_until):
    assert room() == 19  # of 20 million, and each object has a header
    keeper = Keeper.remote()
    pid = shoal.get(keeper.put.remote(12))
    kept = [shoal.put(MEGABYTE) for _ in range(7)]
    with pytest.raises(JobStoreLimitExceeded) as full:
        shoal.put(MEGABYTE)
    assert isinstance(full.value, ObjectStoreFullError)
    text = str(full.value)
    assert re.search(r"job \w{8} has 19\d{6} bytes of objects, 10000\d\d more are wanted, and its JobConfig\(max_object_bytes=20000000\) allows no more", text)
    assert re.search(rf"; 12\d{{6}} of them are of .*Keeper.put.* \(pid {pid} on node \w+\)\. Let references go, or set a higher max_obj", text), text
    shoal.get(keeper.let_go.remote())
    kept.extend(shoal.put(MEGABYTE) for _ in range(12))
    with pytest.raises(JobStoreLimitExceeded, match="of them are of the driver"):
        shoal.get(keeper.put.remote(1))
    del kept
    shoal.get(keeper.put.remote(15))
    assert room() == 4
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: room() == 19)
    shoal.kill(keeper)


def test_a_result_that_does_not_fit_is_its_tasks_error_and_results_count_for_their_owner():
    @shoal.remote
    def make(size):
        return bytes(size)

    @shoal.remote
    def items(count):
        for _ in range(count):
            yield MEGABYTE

    assert len(shoal.get(make.remote(18_000_000))) == 18_000_000
    kept = [make.remote(1_000_000) for _ in range(15)]
    shoal.wait(kept, num_returns=15, timeout=30)
    assert room() == 4
    with pytest.raises(JobStoreLimitExceeded, match=r"a result of .*make: job .* has 15\d{6} bytes of objects, 9000\d{3} more") as full:
        shoal.get(make.remote(9_000_000))
    assert "_core" not in str(full.value), "the runtime's frames are no news"
    with pytest.raises(JobStoreLimitExceeded):
        make.remote(bytes(9_000_000))
    stream = items.remote(10)
    came = []
    with pytest.raises(JobStoreLimitExceeded):
        for ref in stream:
            shoal.get(ref)
            came.append(ref)
    assert len(came) == 4
    del kept, came, stream, ref
    assert len(shoal.get(make.remote(18_000_000))) == 18_000_000


def test_a_loop_that_lets_go_of_what_it_makes_never_meets_the_limit():
    @shoal.remote
    def make(_):
        return MEGABYTE

    for n in range(60):
        assert len(shoal.get(make.remote(shoal.put(MEGABYTE)))) == len(MEGABYTE), n


def test_a_job_config_is_checked_by_name():
    for given, error, text in (
        ({"max_actors": 0}, ValueError, "max_actors=0"), ({"max_actors": "2"}, TypeError, "max_actors='2'"),
        ({"max_spoons": 1}, ValueError, "no field max_spoons"),
        ([1], TypeError, "JobConfig or a dict"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            JobConfig.of(given)
    assert shoal.get_runtime_context().namespace == "tight"
