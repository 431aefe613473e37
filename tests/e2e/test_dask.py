"""Dask's graphs on a cluster."""

from __future__ import annotations

import operator
import os

import pytest
import shoal

dask = pytest.importorskip("dask")

from shoal.util.dask import RayDaskCallback, disable_dask_on_ray, enable_dask_on_ray, ray_dask_get, ray_dask_get_sync, ray_dask_persist

pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("cluster")]


@dask.delayed
def pid_of(*_inputs):
    return os.getpid()


@dask.delayed
def add(x, y):
    return x + y


def test_a_graph_of_the_old_form_gives_the_values_of_nested_keys():
    graph = {"a": 1, "b": (operator.add, "a", 10), "c": (sum, ["a", "b", 5]), "same": "c", "unused": (operator.truediv, 1, 0)}
    assert ray_dask_get(graph, "c") == 17
    assert ray_dask_get(graph, ["a", ["b", "same"]]) == (1, (11, 17))
    assert ray_dask_get_sync(graph, ["b"]) == (11,)
    with pytest.raises(KeyError, match="nothing"):
        ray_dask_get(graph, "nothing")


def test_delayed_calls_run_in_workers_and_pass_their_results_on():
    total = add(add(1, 2), add(3, 4))
    assert total.compute(scheduler=ray_dask_get) == 10
    assert pid_of(total).compute(scheduler=ray_dask_get) != os.getpid()


def test_the_scheduler_is_the_default_where_it_is_enabled_and_not_beyond():
    def where():
        return pid_of().compute(scheduler=None)

    with enable_dask_on_ray():
        assert where() != os.getpid()
    assert where() == os.getpid()
    enable_dask_on_ray(shuffle=None)
    try:
        assert where() != os.getpid()
    finally:
        disable_dask_on_ray()
    assert where() == os.getpid()


def test_arrays_are_computed_in_chunks():
    numpy = pytest.importorskip("numpy")
    array = pytest.importorskip("dask.array")
    x = array.from_array(numpy.arange(10_000).reshape(100, 100), chunks=25)
    with enable_dask_on_ray():
        assert (x @ x.T).sum().compute() == (x.compute() @ x.compute().T).sum()


def test_what_a_task_raises_is_raised_as_what_it_is():
    @dask.delayed
    def fail(_):
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing") as caught:
        add(fail(1), 2).compute(scheduler=ray_dask_get)
    assert isinstance(caught.value, shoal.exceptions.RayTaskError)


def test_persisted_results_stay_in_the_store_and_are_used_again(tmp_path):
    @dask.delayed
    def once(path):
        with open(path, "a") as file:
            file.write("x")
        return 20

    (kept,) = ray_dask_persist(once(tmp_path / "runs"))
    assert all(isinstance(value, shoal.ObjectRef) for value in dict(kept.dask).values())
    assert [add(kept, n).compute(scheduler=ray_dask_get) for n in (1, 2)] == [21, 22]
    assert (tmp_path / "runs").read_text() == "x"


def test_options_reach_the_tasks_from_the_call_and_from_annotations():
    @dask.delayed
    def cpus():
        return shoal.get_runtime_context().get_assigned_resources().get("CPU")

    assert cpus().compute(scheduler=ray_dask_get, ray_remote_args={"num_cpus": 3}) == 3
    with dask.annotate(ray_remote_args={"num_cpus": 2}):
        annotated = cpus()
    assert dask.compute(annotated, cpus(), scheduler=ray_dask_get, optimize_graph=False) == (2, 1)
    plain = cpus()
    with dask.annotate(ray_remote_args={"num_cpus": 4}):
        assert plain.compute(scheduler=ray_dask_get, ray_remote_args={"num_cpus": 3}) == 4
        assert dask.compute(annotated, scheduler=ray_dask_get, optimize_graph=False) == (2,)


def test_resources_of_dasks_own_are_refused_and_not_forgotten():
    with dask.annotate(resources={"GPU": 1}):
        annotated = add(1, 2)
        with pytest.raises(ValueError, match="ray_remote_args"):
            add(3, 4).compute(scheduler=ray_dask_get)
    for call in (lambda: annotated.compute(scheduler=ray_dask_get, optimize_graph=False), lambda: ray_dask_get({"a": 1}, "a", resources={"GPU": 1})):
        with pytest.raises(ValueError, match="ray_remote_args"):
            call()


def test_callbacks_hear_of_every_step_and_may_answer_for_a_task():
    heard = []

    class Listener(RayDaskCallback):
        def _ray_presubmit(self, task, key, deps):
            return 100 if key == "b" else None

        def _ray_postsubmit(self, task, key, deps, object_ref):
            heard.append(("submitted", key))

        def _ray_finish(self, result):
            heard.append(("finished", result))

    with Listener():
        assert ray_dask_get({"a": (operator.add, 1, 2), "b": (operator.add, "a", 1), "c": (operator.add, "a", "b")}, ["c"]) == (103,)
    assert ("submitted", "b") not in heard
    assert heard[-1] == ("finished", (103,))
    heard.clear()
    assert ray_dask_get({"a": (operator.add, 1, 2)}, "a") == 3
    assert heard == []


def test_callbacks_run_in_the_worker_before_and_after_a_task(tmp_path):
    path = tmp_path / "told"

    def before(key, inputs):
        return len(inputs)

    def after(key, result, state):
        with open(path, "a") as file:
            file.write(f"{key}={result} of {state};")

    with RayDaskCallback(ray_pretask=before, ray_posttask=after):
        ray_dask_get({"a": (operator.add, 1, 2), "b": (operator.add, "a", 1)}, "b")
    assert path.read_text() == "a=3 of 0;b=4 of 1;"
