"""What a driver is told of tasks that find no place, and what `shoal why` says."""

import pytest
from shoal._http.why import Known, explain
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


def test_actors_without_a_place_are_told_together_once_and_those_that_begin_never():
    watch = PendingWatch()
    calls = {b"a" * 16: 2, b"b" * 16: 1, b"c" * 16: 5}

    def ask(actor_id):
        return ("Model", "") if actor_id == b"c" * 16 else ("Big", "CPU 2 is wanted; the nodes that have so much are busy")

    assert watch.look_at_actors(0, calls, ask) == []
    assert watch.look_at_actors(11, calls, ask) == [
        f"2 actors Big (one is {'61' * 16}) have no place since 11 s, and 3 calls wait: CPU 2 is wanted; the nodes that have so much are busy"
    ]
    assert watch.look_at_actors(13, {b"b" * 16: 1}, lambda actor_id: pytest.fail("it was told")) == []
    assert watch.look_at_actors(15, {}, ask) == []
    assert watch.look_at_actors(20, {b"b" * 16: 1}, ask) == []
    (text,) = watch.look_at_actors(31, {b"b" * 16: 1}, ask)
    assert text.startswith(f"actor Big ({'62' * 16}) has no place since 11 s, and 1 call waits: ")


def test_what_waits_for_a_group_tells_the_groups_own_reason():
    reason = "placement group ab is not placed yet: bundle 0 (CPU 2) fits no node now"
    assert PendingWatch().look(0, [Waiting("f", 1, 12.0, False, reason, b"ab")], lambda: 0) == [f"1 task of f waits since 12 s: {reason}"]


def task(**more):
    plain = {"task_id": None, "name": "f", "state": "PENDING_NODE_ASSIGNMENT", "error_message": "1 wait since 3.0 s: busy", "node_id": "ab" * 16}
    return {**plain, "worker_pid": None, **more}


ACTOR = {"actor_id": "cd" * 16, "name": None, "class_name": "Counter", "state": "PENDING_CREATION", "pending_reason": "no CPU", "death_cause": None,
         "node_id": None}  # fmt: skip
GROUP = {"placement_group_id": "ef" * 16, "name": "g", "state": "PENDING", "pending_reason": "no GPU"}


def test_each_kind_of_thing_tells_its_reason_by_name_or_id():
    running = task(task_id="12" * 16, state="RUNNING", error_message=None, worker_pid=7, name="g2")
    failed = task(task_id="34" * 16, state="FAILED", error_message="ValueError", name="h")
    known = Known([task(), running, failed], [ACTOR], [GROUP], [])
    assert explain("f", known, []) == {"found": True, "lines": ["task f on node abababababab: 1 wait since 3.0 s: busy"]}
    assert explain("1212", known, [])["lines"] == [f"task g2 ({'12' * 16}) runs on node abababababab in process 7: it does not wait for a node"]
    assert explain("h", known, [])["lines"] == [f"task h ({'34' * 16}) has ended: FAILED: ValueError"]
    assert explain("Counter", known, [])["lines"] == [f"actor Counter ({'cd' * 16}) is PENDING_CREATION: no CPU"]
    assert explain("g", known, [])["lines"] == [f"placement group g ({'ef' * 16}) is PENDING: no GPU"]


def test_what_nobody_knows_is_said_to_be_so_and_how_to_ask():
    known = Known([task()], [], [], [])
    for wanted, text in (("99" * 16, "neither waits nor runs"), ("99" * 20, "neither waits nor runs"), ("9999", "its whole id"), ("spoon", "its whole id")):
        answer = explain(wanted, known, [])
        assert not answer["found"]
        assert len(answer["lines"]) == 1, "what else waits is no answer"
        assert text in answer["lines"][0]


ME = "77" * 16
WISH = {"count": 1, "reason": "needs CPU 2; this node has CPU 1 free of 4", "resources": {"CPU": 2.0}, "placement_group_id": None, "starting": 0,
        "asked_node_ids": [], "runtime_env": ""}  # fmt: skip
NODES = [
    {"node_id": "ab" * 16, "state": "ALIVE", "draining": False, "resources_total": {"CPU": 4.0}, "resources_available": {"CPU": 1.0}},
    {"node_id": "bc" * 16, "state": "ALIVE", "draining": True, "resources_total": {"CPU": 4.0}, "resources_available": {"CPU": 4.0}},
    {"node_id": "ca" * 16, "state": "DEAD", "draining": False, "resources_total": {"CPU": 4.0}, "resources_available": {"CPU": 4.0}},
]


def waits(stage, **more):
    plain = {"task_id": "56" * 16, "name": "f", "stage": stage, "attempt_number": 0, "node_id": "ab" * 16, "submitter_id": ME, "submitter_pid": 5,
             "driver": True, "missing": 0, "arguments": [], "ahead": 0, "leases": 0, "due_s": 0.0, "to_worker_id": None, "to_node_id": None, "actor_id": None,
             "wish": None}  # fmt: skip
    return {**plain, **more}


def told(row, *others, **known):
    everything = {"tasks": [], "actors": [], "groups": [], "nodes": NODES, **known}
    lines = explain("56" * 16, Known(**everything), [row, *others])["lines"]
    assert lines[0].startswith(f"task f ({'56' * 16})")
    assert "the driver (pid 5 on node abababababab)" in lines[0]
    return [lines[0].partition("abababababab), ")[2], *lines[1:]]


def test_a_task_that_waits_for_a_worker_tells_what_each_node_lacks_and_nothing_of_other_tasks():
    queued = waits("PENDING_NODE_ASSIGNMENT", wish=WISH)
    nodes = ["  node abababababab: CPU 2 wanted, 1 free of 4", "  node bcbcbcbcbcbc: drains, and takes nothing new"]
    assert told(queued, tasks=[task(name="g")]) == ["waits for a worker", "  needs CPU 2; this node has CPU 1 free of 4", *nodes]
    behind = told({**queued, "ahead": 3, "leases": 1, "attempt_number": 1})[0]
    assert behind == "attempt 2, waits for a worker; 3 tasks like it are before it; 1 worker of that process does such tasks, one after the other"
    asked = {**queued, "wish": {**WISH, "count": 0, "asked_node_ids": ["bc" * 16]}}
    there = task(node_id="bc" * 16, worker_id=ME, error_message="1 wait since 3.0 s: all 2 workers are in use (worker limit)")
    assert told(asked, tasks=[there])[1] == "  asked of node bcbcbcbcbcbc: 1 wait since 3.0 s: all 2 workers are in use (worker limit)"
    starting = {**queued, "wish": {**WISH, "count": 0, "starting": 1, "runtime_env": '{"working_dir": "/a"}'}}
    env = '  its resources are kept for it on node abababababab, and a worker process starts, in which its runtime_env is set up: {"working_dir": "/a"}'
    assert told(starting) == ["waits for a worker", env]
    grouped = {**queued, "wish": {**WISH, "placement_group_id": "ef" * 16, "reason": "placement group efefefefefef is not placed yet"}}
    assert told(grouped, groups=[GROUP])[1:] == ["  placement group efefefefefef is not placed yet", f"  placement group g ({'ef' * 16}) is PENDING: no GPU"]


def test_a_task_that_waits_for_arguments_tells_who_makes_them_and_what_those_wait_for():
    missing = [{"object_id": "78" * 16 + "01000000", "owner_id": ME, "owner_node_id": "ab" * 16}]
    first = waits("PENDING_ARGS_AVAIL", missing=2, arguments=missing)
    second = waits("PENDING_NODE_ASSIGNMENT", task_id="78" * 16, name="make", wish=WISH)
    lines = told(first, second)
    made = f"  object {'78' * 16}01000000, the result of task {'78' * 16}, of process 777777777777 on node abababababab"
    assert lines[:2] == ["waits for 2 arguments:", made]
    assert lines[2] == "  ... and 1 more"
    assert lines[3].startswith(f"task make ({'78' * 16})")
    assert lines[4] == "  needs CPU 2; this node has CPU 1 free of 4"
    runs = task(task_id="78" * 16, name="make", state="RUNNING", worker_pid=9)
    assert "the result of task make" in told(first, tasks=[runs])[1]
    assert "runs on node abababababab in process 9" in told(first, tasks=[runs])[1]


def test_a_task_that_was_sent_was_put_off_or_belongs_to_an_actor_says_so():
    there = {"to_worker_id": "88" * 16, "to_node_id": "bc" * 16, "ahead": 1}
    runs = task(task_id="78" * 16, name="long", state="RUNNING", worker_pid=9, worker_id="88" * 16)
    sent = told(waits("SUBMITTED_TO_WORKER", **there), tasks=[runs])
    assert sent == [f"was sent to process 9 on node bcbcbcbcbcbc, which runs long ({'78' * 16}); 1 task of that process is before it"]
    assert told(waits("PUT_OFF", due_s=4.2)) == ["is tried again in 4 s: its node was short of memory"]
    call = waits("PENDING_NODE_ASSIGNMENT", actor_id="cd" * 16, ahead=2)
    actor = f"waits for its actor: actor Counter ({'cd' * 16}) is PENDING_CREATION: no CPU; 2 calls of that process are before it"
    assert told(call, actors=[ACTOR]) == [actor]
    (silent,) = explain("56" * 16, Known([], [], [], NODES), [waits("SILENT")])["lines"]
    assert silent.startswith(f"task {'56' * 16} is of the driver (pid 5 on node abababababab), which did not answer: it is stopped, or runs C code")
