"""A node's lease that is over: an actor that may be started elsewhere begins nothing until it is renewed. The protocol alone, driven by hand."""

from __future__ import annotations

import pytest
from shoal._core.driven import Driven, Run
from shoal_base.frames import Type, pack_header

SECOND = 1_000_000_000
NODE, OWNER, WORKER = b"n" * 16, b"o" * 16, b"w" * 16
RAYLET, PEER = 1, 2


class Actor:
    """Its worker, which has been told to create it, and a caller whose frames arrive at once."""

    def __init__(self, restartable: bool) -> None:
        self.now = 100 * SECOND
        self.caller, self.worker = (Driven(worker_id=who, node_id=NODE, kind=kind, job=1) for who, kind in ((OWNER, 0), (WORKER, 1)))
        self.wait(0)
        self.worker.join(RAYLET)
        self.actor_id = self.caller.new_actor_id()
        creation = self.caller.creation_task(self.actor_id, restartable=restartable)
        assert self.worker.deliver(RAYLET, pack_header(len(creation), Type.ACTOR_CREATE, epoch=1) + creation)

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        for one in (self.caller, self.worker):
            one.set_now(self.now)
        self.worker.timer()

    def lease(self, seconds: float) -> None:
        self.worker.set_lease_until(self.now + int(seconds * SECOND))

    def begin(self) -> Run | None:
        run = self.worker.next_run()
        assert run is None or self.worker.begin(run)
        return run

    def created(self) -> None:
        run = self.begin()
        assert run is not None
        self.worker.reply(run, 0, [], 1)
        self.caller.attach_actor(self.actor_id)
        self.caller.actor_update(self.actor_id, 1, WORKER, NODE, 0, 0, "", b"")

    def call(self) -> None:
        self.caller.submit_actor(self.actor_id, b"x", (), (), 1, 0, "m")
        for token, _, _ in self.caller.connects():
            assert self.caller.opened(token, PEER)
            self.worker.accept(PEER, False)
        for end, data in self.caller.take_frames():
            assert end == PEER
            assert self.worker.deliver(PEER, data)


def test_a_restartable_actor_takes_no_call_once_the_lease_is_over_and_goes_on_when_it_is_renewed() -> None:
    actor = Actor(restartable=True)
    actor.lease(9)
    actor.created()
    actor.call()
    actor.wait(9)
    assert actor.begin() is None
    actor.wait(30)
    assert actor.begin() is None
    actor.lease(9)
    assert actor.begin() is not None


def test_a_call_that_came_before_the_lease_was_over_begins_before() -> None:
    actor = Actor(restartable=True)
    actor.lease(9)
    actor.created()
    actor.call()
    actor.wait(8.9)
    assert actor.begin() is not None


def test_a_restartable_actor_is_not_even_created_where_the_lease_is_over() -> None:
    actor = Actor(restartable=True)
    actor.lease(9)
    actor.wait(10)
    assert actor.begin() is None
    actor.lease(9)
    actor.created()


@pytest.mark.parametrize("known", [True, False])
def test_an_actor_that_starts_nowhere_else_goes_on_and_so_does_one_whose_raylet_says_nothing_of_leases(known: bool) -> None:
    actor = Actor(restartable=not known)
    if known:
        actor.lease(9)
    actor.created()
    actor.call()
    actor.wait(60)
    assert actor.begin() is not None


@pytest.mark.parametrize("gone", [True, False])
def test_a_worker_whose_raylet_has_gone_answers_nothing_so_that_its_callers_try_again(gone: bool) -> None:
    """What it runs may have failed for want of its node alone."""
    actor = Actor(restartable=False)
    actor.created()
    actor.call()
    run = actor.begin()
    assert run is not None
    actor.worker.take_frames()
    if gone:
        actor.worker.closed(RAYLET)
    actor.worker.reply(run, 1, [(0, b"the connection to this node's raylet ended", ())], 1)
    assert [end for end, _ in actor.worker.take_frames() if end == PEER] == ([] if gone else [PEER])
