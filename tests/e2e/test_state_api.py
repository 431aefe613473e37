"""shoal.util.state and shoal.timeline against a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import shoal
from shoal.util import state

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with shoal.init("local", num_cpus=2, log_to_driver=False) as context:
        yield context


@shoal.remote
def nap(seconds):
    time.sleep(seconds)
    return os.getpid()


@shoal.remote(max_retries=0)
def fail():
    raise KeyError("no")


@shoal.remote(max_retries=0)
def die():
    os._exit(3)


@shoal.remote
class Clerk:
    def work(self, seconds=0):
        time.sleep(seconds)
        return os.getpid()

    @shoal.method(enable_task_events=False)
    def secret(self):
        return 1


@shoal.remote(enable_task_events=False)
def quiet():
    return 1


def named(name):
    return [task for task in state.list_tasks(limit=1000) if task.name == name]


def test_tasks_that_ended_are_listed_with_their_times_and_failures(wait_until):
    pid = shoal.get(nap.remote(0.2))
    with pytest.raises(KeyError):
        shoal.get(fail.remote())
    with pytest.raises(shoal.exceptions.WorkerCrashedError):
        shoal.get(die.remote())
    shoal.get(quiet.remote())
    (done,) = named("nap")
    assert (done.state, done.worker_pid, done["type"], done.job_id) == ("FINISHED", pid, "NORMAL_TASK", shoal.get_runtime_context().get_job_id())
    assert 180 <= done.end_time_ms - done.start_time_ms < 60_000
    assert abs(done.end_time_ms / 1000 - time.time()) < 60
    (raised,) = named("fail")
    assert (raised.state, raised.error_message) == ("FAILED", "it raised")
    (dead,) = wait_until(lambda: named("die"))
    assert (dead.state, dead.error_message) == ("FAILED", "its worker died")
    assert named("quiet") == []
    assert state.get_task(done.task_id) == done
    assert state.get_task("ff" * 16) is None


def test_calls_of_actors_are_told_by_actor_and_left_out_where_that_was_asked_for(wait_until):
    clerk = Clerk.remote()
    pid = shoal.get([clerk.work.remote(), clerk.secret.remote()])[0]
    silent = Clerk.options(enable_task_events=False).remote()
    shoal.get(silent.work.remote())
    (call,) = named("Clerk.work")
    assert (call["type"], call.actor_id, call.worker_pid) == ("ACTOR_TASK", clerk._actor_id.hex(), pid)
    assert named("Clerk.secret") == []
    (actor,) = state.list_actors(filters=[("actor_id", "=", call.actor_id)])
    assert (actor.class_name, actor.state, actor.pid) == ("Clerk", "ALIVE", pid)
    assert state.get_actor(call.actor_id) == actor


def test_what_waits_and_runs_is_listed_beside_what_ended(wait_until):
    refs = [nap.options(name="long", num_cpus=2).remote(1.5) for _ in range(2)]
    states = lambda: sorted(task.state for task in state.list_tasks(filters=[("name", "=", "long")]))  # noqa: E731
    wait_until(lambda: states() == ["PENDING_NODE_ASSIGNMENT", "RUNNING"] or "FINISHED" in states())
    shoal.get(refs)
    assert state.summarize_tasks()["summary"]["long"]["FINISHED"] == 2


def test_nodes_jobs_workers_objects_and_groups_are_listed():
    (node,) = state.list_nodes(filters=[("state", "=", "ALIVE")])
    assert state.get_node(node.node_id) == node
    assert node.resources_total["CPU"] == 2
    job = shoal.get_runtime_context().get_job_id()
    assert state.get_job(job)["status"] == "RUNNING"
    assert os.getpid() in [worker.pid for worker in state.list_workers()]
    kept = shoal.put(bytes(1 << 20))
    assert max(o.object_size for o in state.list_objects()) >= 1 << 20
    assert state.summarize_objects()["total_size_bytes"] >= 1 << 20
    del kept
    group = shoal.util.placement_group([{"CPU": 1}], name="pair")
    shoal.get(group.ready())
    (found,) = state.list_placement_groups(filters=[("name", "=", "pair")])
    assert found.state == "CREATED"
    shoal.util.remove_placement_group(group)
    assert state.summarize_actors()["total"] >= 0


def test_logs_are_read_by_file_by_actor_and_by_pid(wait_until):
    @shoal.remote
    class Speaker:
        def say(self, text):
            print(text, flush=True)
            return os.getpid()

    speaker = Speaker.remote()
    pid = shoal.get(speaker.say.remote("hear, hear"))
    assert "hear, hear" in "".join(state.get_log(actor_id=speaker._actor_id.hex()))
    assert "hear, hear" in "".join(state.get_log(pid=pid, tail=5))
    names = state.list_logs(glob_filter="worker-*")["worker_out"]
    assert any("hear, hear" in "".join(state.get_log(filename=name)) for name in names)
    with pytest.raises(ValueError, match="exactly one of"):
        state.get_log(pid=pid, actor_id="ab")


def test_wrong_questions_are_refused_by_name():
    with pytest.raises(ValueError, match=r"filter \('state', '<', 1\)"):
        state.list_tasks(filters=[("state", "<", 1)])
    with pytest.raises(state.RayStateApiException, match="spoon"):
        state.list_tasks(filters=[("spoon", "=", 1)])
    with pytest.raises(state.RayStateApiException, match="limit"):
        state.list_tasks(limit=0)
    with pytest.raises(AttributeError, match="its fields are"):
        _ = state.list_nodes()[0].spoon


def test_the_timeline_is_a_trace_of_what_ran(tmp_path: Path):
    shoal.get([nap.options(name="traced").remote(0.05) for _ in range(3)])
    trace = [event for event in shoal.timeline() if event["name"] == "traced"]
    assert len(trace) == 3
    assert all(event["ph"] == "X" and 40_000 <= event["dur"] < 60_000_000 and event["args"]["state"] == "FINISHED" for event in trace)
    path = tmp_path / "trace.json"
    assert shoal.timeline(str(path)) is None
    assert [event["name"] for event in json.loads(path.read_text())].count("traced") == 3


def test_a_task_may_ask_too():
    @shoal.remote
    def ask():
        return [node.state for node in state.list_nodes()]

    assert shoal.get(ask.remote()) == ["ALIVE"]


def test_without_a_connection_the_timeline_says_so():
    code = "import shoal\ntry: shoal.timeline()\nexcept shoal.exceptions.NotConnectedError as error: print(error)"
    done = subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "timeline() needs a connection" in done.stdout
