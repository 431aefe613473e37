"""What `shoal up` and `shoal down` do, from what is wanted, what was launched, and what runs."""

from dataclasses import replace

import pytest
from shoal._launcher.config import make_config
from shoal._launcher.plan import Launched, Observed, Plan, Running, plan_down, plan_up, setup_digest
from shoal.util.yaml_config import parse

FILE = "cluster_name: demo\nprovider: {type: local, workers: 2}\n"
CONFIG = make_config(parse(FILE))
HEAD, FIRST, SECOND = "head", "worker-1", "worker-2"
CONTENTS: dict[str, str] = {}


def launched(config=CONFIG, contents=CONTENTS):
    return {node.key: Launched(node.host, node.directory, node.head, setup_digest(node, contents), node.start_digest) for node in config.nodes}


def running(*keys: str, address: str = "h:1") -> dict[str, Running]:
    return {key: Running(f"id-{key}", key == HEAD, address, "h:2") for key in keys}


def observed(*keys: str, alive: frozenset[str] | None = None) -> Observed:
    return Observed(running(*keys), alive)


ALL = observed(HEAD, FIRST, SECOND)


def keys(steps) -> list[str]:
    return [step.key for step in steps]


def shape(plan: Plan) -> tuple[list[str], list[str], bool, list[str], list[str]]:
    return keys(plan.stop), keys(plan.prepare), plan.start_head is not None, keys(plan.start_workers), sorted(plan.keep)


def test_a_new_cluster_prepares_and_starts_all():
    plan = plan_up(CONFIG, {}, Observed(), CONTENTS)
    assert shape(plan) == ([], [HEAD, FIRST, SECOND], True, [FIRST, SECOND], [])
    assert not plan.interrupts


def test_what_runs_as_it_should_is_left_alone():
    plan = plan_up(CONFIG, launched(), ALL, CONTENTS)
    assert plan.empty and sorted(plan.keep) == [HEAD, FIRST, SECOND]


def test_a_worker_that_ended_is_started_and_nothing_else_happens():
    plan = plan_up(CONFIG, launched(), observed(HEAD, SECOND), CONTENTS)
    assert shape(plan) == ([], [], False, [FIRST], [HEAD, SECOND])
    assert plan.start_workers[0].why == "is not running"


def test_without_its_head_every_worker_is_started_anew():
    plan = plan_up(CONFIG, launched(), observed(FIRST), CONTENTS)
    assert shape(plan) == ([FIRST], [], True, [FIRST, SECOND], [])
    assert plan.stop[0].why == "the head is started anew"


def test_a_worker_that_the_head_counts_as_dead_is_started_anew():
    plan = plan_up(CONFIG, launched(), observed(HEAD, FIRST, SECOND, alive=frozenset({"id-head", "id-worker-2"})), CONTENTS)
    assert shape(plan) == ([FIRST], [], False, [FIRST], [HEAD, SECOND])


def test_when_nobody_can_say_who_is_alive_what_runs_counts():
    assert plan_up(CONFIG, launched(), replace(ALL, alive=None), CONTENTS).empty


def test_a_worker_of_another_head_is_started_anew():
    seen = Observed(running(HEAD, FIRST) | running(SECOND, address="h:9"))
    plan = plan_up(CONFIG, launched(), seen, CONTENTS)
    assert (keys(plan.stop), keys(plan.start_workers)) == ([SECOND], [SECOND])
    assert plan.stop[0].why == "belongs to another head, h:9"


def test_a_node_in_the_wrong_role_is_started_anew():
    seen = Observed(running(HEAD, FIRST) | {SECOND: Running("x", True, "h:1")})
    assert keys(plan_up(CONFIG, launched(), seen, CONTENTS).stop) == [SECOND]


def test_a_changed_start_of_the_workers_restarts_them_and_not_the_head():
    changed = make_config(parse(FILE + "worker: {num_cpus: 1}\n"))
    plan = plan_up(changed, launched(), ALL, CONTENTS)
    assert shape(plan) == ([FIRST, SECOND], [], False, [FIRST, SECOND], [HEAD])
    assert plan.interrupts


def test_a_changed_setup_prepares_again_and_restarts_with_workers_stopped_before_the_head():
    changed = make_config(parse(FILE + "setup_commands: [x]\n"))
    plan = plan_up(changed, launched(), ALL, CONTENTS)
    assert shape(plan) == ([FIRST, SECOND, HEAD], [HEAD, FIRST, SECOND], True, [FIRST, SECOND], [])


def test_changed_contents_of_mounted_files_count_as_a_changed_setup():
    plan = plan_up(CONFIG, launched(), ALL, {SECOND: "other"})
    assert shape(plan) == ([SECOND], [SECOND], False, [SECOND], [HEAD, FIRST])


def test_no_restart_prepares_but_leaves_what_runs_and_starts_what_does_not():
    changed = make_config(parse(FILE + "setup_commands: [x]\n"))
    plan = plan_up(changed, launched(), observed(HEAD, FIRST), CONTENTS, restart="never")
    assert shape(plan) == ([], [HEAD, FIRST, SECOND], False, [SECOND], [HEAD, FIRST])


def test_restart_only_restarts_all_and_sets_up_nothing():
    changed = make_config(parse(FILE + "setup_commands: [x]\n"))
    plan = plan_up(changed, launched(), ALL, CONTENTS, restart="always", setup=False)
    assert shape(plan) == ([FIRST, SECOND, HEAD], [], True, [FIRST, SECOND], [])


def test_a_node_taken_out_of_the_file_is_stopped():
    fewer = make_config(parse(FILE.replace("2}", "1}")))
    plan = plan_up(fewer, launched(), ALL, CONTENTS)
    assert shape(plan) == ([SECOND], [], False, [], [HEAD, FIRST])
    assert plan.stop[0].why == "is no longer in the file"


def test_a_new_temp_dir_stops_what_runs_in_the_old_one():
    moved = make_config(parse(FILE + "temp_dir: /tmp/elsewhere\n"))
    plan = plan_up(moved, launched(), Observed(), CONTENTS)
    assert keys(plan.stop) == [FIRST, SECOND, HEAD]
    assert {step.directory for step in plan.stop} == {node.directory for node in CONFIG.nodes}
    assert keys(plan.start_workers) == [FIRST, SECOND] and plan.start_head is not None


@pytest.mark.parametrize("lost", ["setup_digest", "start_digest"])
def test_what_was_begun_and_not_ended_is_done_again(lost):
    before = launched()
    before[FIRST] = replace(before[FIRST], **{lost: ""})
    plan = plan_up(CONFIG, before, ALL, CONTENTS)
    assert keys(plan.start_workers) == [FIRST]
    assert keys(plan.prepare) == ([FIRST] if lost == "setup_digest" else [])


def test_without_a_record_what_runs_is_taken_over():
    plan = plan_up(CONFIG, {}, ALL, CONTENTS)
    assert shape(plan) == ([], [HEAD, FIRST, SECOND], False, [], [HEAD, FIRST, SECOND])


def test_a_second_plan_after_the_first_was_carried_out_is_empty():
    for seen in (Observed(), observed(HEAD), observed(FIRST, SECOND), ALL):
        plan = plan_up(CONFIG, {}, seen, CONTENTS)
        after = set(plan.keep) | set(keys(plan.start_workers)) | ({HEAD} if plan.start_head else set())
        assert after == {HEAD, FIRST, SECOND}
        assert plan_up(CONFIG, launched(), observed(*after), CONTENTS).empty


def test_down_ends_workers_first_and_what_the_file_has_forgotten_too():
    fewer = make_config(parse(FILE.replace("2}", "0}")))
    workers, heads = plan_down(fewer, launched())
    assert (keys(workers), keys(heads)) == ([FIRST, SECOND], [HEAD])


def test_down_without_a_record_goes_by_the_file():
    workers, heads = plan_down(CONFIG, {})
    assert (keys(workers), keys(heads)) == ([FIRST, SECOND], [HEAD])


def test_down_of_the_workers_leaves_the_head():
    workers, heads = plan_down(CONFIG, launched(), workers_only=True)
    assert (keys(workers), heads) == ([FIRST, SECOND], ())
