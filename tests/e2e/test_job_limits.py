"""Limits of a job: each is an error that names it, and nothing else is harmed."""

from __future__ import annotations

import re

import pytest
import shoal
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


def test_a_task_that_starts_too_many_is_told_the_limit_and_the_driver_waits():
    @shoal.remote
    def flood():
        try:
            return len([nest.remote(1) for _ in range(1000)])
        except PendingCallsLimitExceeded as error:
            return str(error)

    assert "at most 50, by JobConfig(max_pending_tasks=50)" in shoal.get(flood.remote())
    assert shoal.get([nest.remote(1) for _ in range(300)]) == [1] * 300


def test_a_job_config_is_checked_by_name():
    for given, error, text in (
        ({"max_actors": 0}, ValueError, "max_actors=0"), ({"max_actors": "2"}, TypeError, "max_actors='2'"),
        ({"max_spoons": 1}, ValueError, "no field max_spoons"),
        ([1], TypeError, "JobConfig or a dict"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            JobConfig.of(given)
    assert shoal.get_runtime_context().namespace == "tight"
