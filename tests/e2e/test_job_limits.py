"""Limits of a job: each is an error that names it, and nothing else is harmed."""

from __future__ import annotations

import os
import re
import threading
import time

import pytest
import shoal
from shoal import _runtime
from shoal.exceptions import JobLimitExceeded, PendingCallsLimitExceeded
from shoal.job_config import JobConfig

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", autouse=True)
def limited():
    with shoal.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False, job_config=JobConfig(None, "tight", 50, 2, 3)):
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


@shoal.remote
def submit_at_the_limit(path, tries):
    """Of so many more: how many were refused, and how often that was asked for; then whether there is room as soon as one of its own has ended."""
    held = [wait_for.remote(path) for _ in range(40)]
    while len(held) < 1000:
        try:
            held.append(wait_for.remote(path))
        except PendingCallsLimitExceeded:
            break
    asked = _runtime.state.engine.stats()["allowances_asked"]
    started, refused = time.monotonic(), 0
    for _ in range(tries):
        try:
            held.append(wait_for.remote(path))
        except PendingCallsLimitExceeded:
            refused += 1
    took = time.monotonic() - started
    asked = _runtime.state.engine.stats()["allowances_asked"] - asked
    shoal.cancel(held.pop())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            held.append(wait_for.remote(path))
            break
        except PendingCallsLimitExceeded:
            pass
    open(path, "w").close()
    return refused, asked, took, len(held)


def test_at_the_limit_a_task_is_refused_without_asking_each_time_and_goes_on_when_its_own_end(flag):
    refused, asked, took, held = shoal.get(submit_at_the_limit.remote(str(flag("go")), 2000), timeout=80)
    assert refused == 2000
    assert asked <= took / 0.01 + 1, f"{refused} refusals asked {asked} times within {took:.2f} s"
    assert held == 49


def test_a_driver_at_the_limit_asks_now_and_then_and_not_with_each_task():
    asked, started = _runtime.state.engine.stats()["allowances_asked"], time.monotonic()
    assert shoal.get([nest.remote(1) for _ in range(1000)], timeout=80) == [1] * 1000
    took = time.monotonic() - started
    asked = _runtime.state.engine.stats()["allowances_asked"] - asked
    # A refusal, ten times a second, takes back what nobody uses; that is given anew in a dozen steps.
    assert asked <= (took / 0.1 + 2) * 15, f"1000 tasks asked {asked} times within {took:.2f} s"


def test_a_job_config_is_checked_by_name():
    for given, error, text in (
        ({"max_actors": 0}, ValueError, "max_actors=0"), ({"max_actors": "2"}, TypeError, "max_actors='2'"),
        ({"max_spoons": 1}, ValueError, "no field max_spoons"),
        ([1], TypeError, "JobConfig or a dict"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            JobConfig.of(given)
    assert shoal.get_runtime_context().namespace == "tight"
