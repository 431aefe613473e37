"""Which replica gets a request, without any."""

import random
from types import SimpleNamespace

import pytest
from shoal.serve.exceptions import BackPressureError, DeploymentUnavailableError
from shoal.serve.router import LONGEST_PAUSE_S, Table
from shoal.serve.state import ReplicaSet

HANDLE = (SimpleNamespace(call=None, http=None), None)


def table(*ids, max_ongoing=2, max_queued=-1, seed=0):
    made = Table(("app", "d"), random.Random(seed).random)
    made.update(ReplicaSet(tuple(ids), max_ongoing, max_queued), dict.fromkeys(ids, HANDLE))
    return made


def test_two_choices_spread_far_better_than_one():
    # With one random choice the fullest of 100 would have about 30 of 2,000.
    routes = table(*(f"r{i}" for i in range(100)), max_ongoing=1000)
    for _ in range(2000):
        routes.choose().ongoing += 1
    counts = [slot.ongoing for slot in routes.slots.values()]
    assert max(counts) <= 24
    assert min(counts) >= 14


def test_full_replicas_are_not_chosen_and_any_with_room_is_found():
    routes = table("a", "b", "c")
    for _ in range(6):
        routes.choose().ongoing += 1
    assert routes.choose() is None
    routes.slots["b"].ongoing -= 1
    assert all(routes.choose().replica_id == "b" for _ in range(20))


def test_counts_stay_when_the_set_changes_and_the_dead_never_return():
    routes = table("a", "b")
    routes.slots["a"].ongoing = 1
    routes.lost(routes.slots["b"])
    routes.update(ReplicaSet(("a", "b", "c"), 2, -1), dict.fromkeys("abc", HANDLE))
    assert sorted(routes.slots) == ["a", "c"]
    assert routes.slots["a"].ongoing == 1


def test_one_that_refused_is_left_alone_for_longer_each_time():
    routes = table("a")
    slot = routes.choose()
    pauses = [routes.refused(slot) for _ in range(20)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S
    assert routes.choose() is None
    routes.rested(slot)
    assert routes.choose() is slot


def test_queues_have_a_limit_and_second_turns_do_not_count():
    routes = table("a", max_queued=1)
    routes.enqueue("first")
    with pytest.raises(BackPressureError, match="1 requests wait already for a replica of d, max_queued_requests=1"):
        routes.enqueue("second")
    routes.enqueue("again", again=True)
    assert list(routes.queue) == ["again", "first"]


def test_what_has_gone_refuses():
    routes = table("a")
    routes.update(ReplicaSet((), 0, 0, "there is no application 'app'"), {})
    with pytest.raises(DeploymentUnavailableError, match="there is no application"):
        routes.enqueue("call")


def test_models_go_where_they_are():
    routes = table("a", "b", "c", max_ongoing=3)
    place = routes.choose("model")
    assert all(routes.choose("model") is place for _ in range(10))
    place.ongoing = 3
    other = routes.choose("model")
    assert other is not place
    other.ongoing += 1
    place.ongoing = 0
    assert routes.choose("model") is place
    routes.lost(place)
    assert routes.choose("model") is other
