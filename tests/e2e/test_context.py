"""Runtime context, cluster state, utilities."""

import os

import pytest
import shoal

pytestmark = pytest.mark.usefixtures("cluster")


def test_the_drivers_context():
    context = shoal.get_runtime_context()
    assert context.get_task_id() is None and context.get_actor_id() is None
    assert context.get_node_id() == shoal.nodes()[0]["NodeID"]
    assert len(context.get_job_id()) == 8 and len(context.get_worker_id()) == 32
    assert context.get_node_labels()["zone"] == "a" and context.namespace


def test_a_tasks_context():
    @shoal.remote(num_cpus=2, resources={"thing": 1})
    def look():
        c = shoal.get_runtime_context()
        return c.get_task_id(), c.get_job_id(), c.get_task_name(), c.get_assigned_resources(), c.get_actor_id(), c.namespace, c.is_canceled()

    ref = look.options(name="looking").remote()
    task_id, job_id, name, resources, actor_id, namespace, cancelled = shoal.get(ref)
    mine = shoal.get_runtime_context()
    assert task_id == ref.task_id().hex() and job_id == mine.get_job_id() and namespace == mine.namespace
    assert name == "looking" and resources == {"CPU": 2, "thing": 1} and actor_id is None and cancelled is False


def test_an_actors_context():
    @shoal.remote(num_cpus=0)
    class Named:
        def look(self):
            c = shoal.get_runtime_context()
            return c.get_actor_id(), c.get_actor_name(), c.get_task_name(), c.get_task_function_name()

    actor = Named.options(name="looker").remote()
    assert shoal.get(actor.look.remote()) == (actor._actor_id.hex(), "looker", "Named.look", f"{__name__}.Named.look")


def named_in_a_module():
    c = shoal.get_runtime_context()
    return c.get_task_function_name(), c.get_task_name(), c.task_id, c.current_placement_group_id, c.get_resource_ids()


def test_a_tasks_function_has_its_modules_name_whatever_the_task_is_called():
    ref = shoal.remote(named_in_a_module).options(name="other").remote()
    function, task, task_id, group, ids = shoal.get(ref)
    assert (function, task, task_id) == (f"{__name__}.named_in_a_module", "other", shoal.TaskID(ref.task_id()))
    assert group is None
    assert ids == {"GPU": []}


def test_ids_of_what_the_driver_is_not_are_refused():
    context = shoal.get_runtime_context()
    with pytest.raises(RuntimeError, match="task_id is only available in a task"):
        _ = context.task_id
    with pytest.raises(RuntimeError, match="actor_id is only available in an actor"):
        _ = context.actor_id


def test_a_tuple_of_references_is_refused():
    ref = shoal.put(1)
    with pytest.raises(ValueError, match="Invalid type of object refs, <class 'tuple'>"):
        shoal.get((ref,))
    with pytest.raises(TypeError, match="expected a list"):
        shoal.wait((ref,))


def test_the_cluster_tells_its_resources(wait_until):
    assert shoal.cluster_resources()["CPU"] == 4 and shoal.cluster_resources()["thing"] == 2
    wait_until(lambda: shoal.available_resources().get("CPU") == 4)
    node = shoal.nodes()[0]
    assert node["Alive"] and node["Resources"]["CPU"] == 4 and node["Labels"]["zone"] == "a"


def test_no_gpu_is_seen_where_there_is_none():
    assert shoal.get(shoal.remote(lambda: shoal.get_gpu_ids()).remote()) == []


def test_prints_of_tasks_go_to_files_of_their_worker(cluster, wait_until):
    @shoal.remote
    def prints():
        print("a line from the task")
        return os.getpid()

    shoal.get(prints.remote())
    from pathlib import Path

    logs = Path(cluster["session_dir"]) / "logs"
    wait_until(lambda: any("a line from the task" in p.read_text() for p in logs.glob("worker-*.out")), what="the line in a log file")


def test_the_modules_of_shoal_may_be_named_in_a_tasks_code():
    util = shoal.util
    exceptions = shoal.exceptions

    @shoal.remote
    def asks():
        return util.get_current_placement_group(), exceptions.RayError.__name__, shoal.util.__name__

    assert shoal.get(asks.remote(), timeout=30) == (None, "RayError", "shoal.util")


def test_ids_come_as_objects_too():
    context = shoal.get_runtime_context()
    assert context.job_id.hex() == context.get_job_id()
    assert context.node_id.hex() == context.get_node_id()
    assert context.worker_id.hex() == context.get_worker_id()
