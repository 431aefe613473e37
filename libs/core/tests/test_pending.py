"""What a driver is told of tasks that find no place, and what `shoal why` says."""

from shoal._http.why import explain
from shoal._pending import PendingWatch, Waiting


def test_what_fits_no_node_is_warned_of_once_while_it_lasts():
    watch = PendingWatch()
    young, old = Waiting("f", 1, 4.0, True, "needs CPU 64"), Waiting("f", 1, 12.0, True, "needs CPU 64")
    assert watch.look(0, [young], not_asked) == []
    assert watch.look(5, [old], not_asked) == ["1 task of f cannot run on any node of the cluster, since 12 s: needs CPU 64"]
    assert watch.look(10, [old], not_asked) == []
    assert watch.look(15, [], not_asked) == []
    assert len(watch.look(20, [old], not_asked)) == 1


def not_asked():
    raise AssertionError("counting is dear, and was not needed")


def test_a_queue_behind_ones_own_tasks_is_no_reason_to_warn_and_is_seldom_counted():
    watch = PendingWatch()
    busy = Waiting("f", 7, 60.0, False, "needs CPU 1; this node has CPU 0 free of CPU 2")
    assert watch.look(0, [busy], lambda: 2) == []
    assert watch.look(30, [busy], not_asked) == []
    (text,) = watch.look(61, [busy], lambda: 0)
    assert text.startswith("7 tasks of f wait for a node since 60 s, while no task of this program runs: needs CPU 1; this node has CPU 0 free")
    assert watch.look(66, [busy], not_asked) == []


def task(**more):
    plain = {"task_id": None, "name": "f", "state": "PENDING_NODE_ASSIGNMENT", "error_message": "1 wait since 3.0 s: busy", "node_id": "ab" * 16}
    return {**plain, "worker_pid": None, **more}


ACTOR = {"actor_id": "cd" * 16, "name": None, "class_name": "Counter", "state": "PENDING_CREATION", "pending_reason": "no CPU", "death_cause": None,
         "node_id": None}  # fmt: skip
GROUP = {"placement_group_id": "ef" * 16, "name": "g", "state": "PENDING", "pending_reason": "no GPU"}


def test_each_kind_of_thing_tells_its_reason_by_name_or_id():
    running = task(task_id="12" * 16, state="RUNNING", error_message=None, worker_pid=7, name="g2")
    failed = task(task_id="34" * 16, state="FAILED", error_message="ValueError", name="h")
    rows = [task(), running, failed], [ACTOR], [GROUP]
    assert explain("f", *rows) == {"found": True, "lines": ["task f on node abababababab: 1 wait since 3.0 s: busy"]}
    assert explain("1212", *rows)["lines"] == [f"task g2 ({'12' * 16}) runs on node abababababab in process 7: it does not wait for a node"]
    assert explain("h", *rows)["lines"] == [f"task h ({'34' * 16}) has ended: FAILED: ValueError"]
    assert explain("Counter", *rows)["lines"] == [f"actor Counter ({'cd' * 16}) is PENDING_CREATION: no CPU"]
    assert explain("g", *rows)["lines"] == [f"placement group g ({'ef' * 16}) is PENDING: no GPU"]


def test_what_nobody_knows_may_be_anything_that_waits():
    answer = explain("99" * 16, [task()], [], [])
    assert not answer["found"]
    assert "waits for its arguments" in answer["lines"][0]
    assert answer["lines"][1].startswith("task f")
    assert explain("x", [], [], [])["lines"][1] == "nothing waits for a node"
